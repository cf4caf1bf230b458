"""Open the example's site over TLS with Chromium, print as JSON what was seen: ``tls_browser.py URL CHROMIUM``."""

import json
import sys

from playwright.sync_api import Error, sync_playwright

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


def main():
    url, chromium = sys.argv[1:]
    seen = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=FLAGS)
        try:
            browser.new_page().goto(url)
        except Error as error:
            seen["refused"] = str(error)
        page = browser.new_page(ignore_https_errors=True)
        page.set_default_timeout(20_000)
        page.goto(url)
        page.wait_for_function("document.getElementById('answer').textContent !== '...'")
        seen["heading"] = page.text_content("h1")
        seen["answer"] = page.text_content("#answer")
        seen["protocol"] = page.evaluate("location.protocol")
        seen["downloaded"] = page.evaluate(
            "fetch('/download/1048576').then(found => found.arrayBuffer()).then(data => data.byteLength)"
        )
        browser.close()
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
