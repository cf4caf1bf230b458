"""Visit a page with Chromium, and print as JSON what was seen: ``browser.py URL CHROMIUM FOLDER``."""

import hashlib
import json
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def visit(page, url, folder):
    """Use the page as somebody would."""
    page.goto(url)
    page.wait_for_function("document.title === 'done'")
    seen = json.loads(page.text_content("#result"))
    seen["color"] = page.evaluate("getComputedStyle(document.querySelector('h1')).color")
    seen["picture"] = page.evaluate("document.querySelector('img').naturalWidth")
    with page.expect_download() as started:
        page.click("#download")
    download = started.value
    seen["download"] = [download.suggested_filename, hashlib.sha256(Path(download.path()).read_bytes()).hexdigest()]
    (folder / "upload.bin").write_bytes(b"u" * 2_000_000)
    page.set_input_files("input[type=file]", folder / "upload.bin")
    page.click("button")
    page.wait_for_url("**/upload")
    seen["form"] = json.loads(page.text_content("body"))
    page.go_back()
    page.wait_for_function("document.title === 'done'")
    page.reload()
    page.wait_for_function("document.title === 'done'")
    return seen


def trouble_of(request):
    """Return why a request failed, if the page did not give it up itself: as a navigation, or when it knew enough."""
    given_up = request.failure == "net::ERR_ABORTED" and request.url.split("/")[4:5] in (["download"], ["events"])
    return [] if given_up else [f"{request.url}: {request.failure}"]


def main():
    url, chromium, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    troubles = []
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            folder / "profile", executable_path=chromium, headless=True, args=FLAGS
        )
        page = context.pages[0]
        page.set_default_timeout(20_000)
        page.on("console", lambda message: troubles.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("requestfailed", lambda request: troubles.extend(trouble_of(request)))
        page.on("response", lambda answer: troubles.append(answer.url) if answer.status >= 400 else None)
        try:
            seen = visit(page, url, folder)
        except Exception as error:
            seen = {"error": str(error)}
        context.close()
    print(json.dumps({**seen, "troubles": troubles}))


if __name__ == "__main__":
    main()
