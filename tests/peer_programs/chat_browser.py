"""Two people in a chat, each in a page of Chromium's: ``chat_browser.py URL CHROMIUM FOLDER`` prints what they saw."""

import json
import sys
from pathlib import Path

from browser import FLAGS
from playwright.sync_api import sync_playwright


def lines(page):
    return page.eval_on_selector_all("#said li", "found => found.map(each => each.textContent)")


def heard(page, count):
    page.wait_for_function(f"document.querySelectorAll('#said li').length >= {count}")
    return lines(page)


def main():
    url, chromium, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            folder / "profile", executable_path=chromium, headless=True, args=FLAGS
        )
        troubles = []
        people = {}
        for name in ("Ann", "Bob"):
            page = people[name] = context.new_page()
            page.set_default_timeout(20_000)
            page.on("console", lambda message: troubles.append(f"{message.type}: {message.text}"))
            page.on("pageerror", lambda error: troubles.append(str(error)))
            page.goto(f"{url}?room=a room&name={name}")
            page.wait_for_function("document.getElementById('state').textContent.startsWith('here')")
        heard(people["Ann"], 2)
        for name, text in (("Ann", "hello <b>Bob</b>"), ("Bob", "grüß dich \N{SNOWMAN}")):
            people[name].fill("#text", text)
            people[name].click("button")
            for page in people.values():
                page.wait_for_function("text => document.body.textContent.includes(text)", arg=text)
        seen = {"Bob": lines(people["Bob"])}
        people["Bob"].evaluate("socket.onclose = null; socket.close(4000, 'done')")
        seen["Ann"] = heard(people["Ann"], 5)
        seen["extensions"] = people["Ann"].evaluate("socket.extensions")
        context.close()
    print(json.dumps({**seen, "troubles": troubles}))


if __name__ == "__main__":
    main()
