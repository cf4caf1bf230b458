"""Look at the status page with Chromium: ``status_browser.py URL CHROMIUM FOLDER`` prints what was seen, as JSON.

The page's clock is in our hands: a second passes when we say so. With ``--pictures`` it takes pictures instead, of a
page that runs by itself, into the folder.
"""

import json
import sys
from pathlib import Path

from browser import FLAGS
from playwright.sync_api import sync_playwright

#: The texts that can be seen and have too little contrast with what is behind them (WCAG 2, 1.4.3: 4.5 at least).
CONTRAST = """() => {
  const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const channels = (color) => {
    probe.clearRect(0, 0, 1, 1); probe.fillStyle = color; probe.fillRect(0, 0, 1, 1);
    return [...probe.getImageData(0, 0, 1, 1).data];
  };
  const light = (color) => {
    const part = (value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    const [red, green, blue] = channels(color).map(part);
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      if (channels(color)[3]) return color;
    }
    return "white";
  };
  const poor = [];
  let looked = 0;
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((each) => each.nodeType === 3 && each.textContent.trim());
    if (!own || !node.checkVisibility()) continue;
    looked++;
    const [one, other] = [light(getComputedStyle(node).color), light(behind(node))].sort((a, b) => b - a);
    if ((one + 0.05) / (other + 0.05) < 4.5) poor.push(node.textContent.trim());
  }
  return looked > 60 ? poor : [`only ${looked} texts`];
}"""
#: What a row says, column by column.
ROWS = "rows => rows.map(row => [...row.cells].map(cell => cell.innerText.trim()))"


class Visit:
    """A page, and what is done to it."""

    def __init__(self, page, url):
        self.page = page
        self.url = url

    def passes(self, condition, argument=None):
        """Let seconds pass until a condition holds."""
        for _ in range(200):
            if self.page.evaluate(condition, argument):
                return
            self.page.clock.run_for(1000)
            while self.page.evaluate("asking !== null"):  # the answer comes by the world's clock, not by ours
                self.page.wait_for_timeout(2)
        raise AssertionError(f"waited in vain for {condition} {argument}")

    def says(self, where, text):
        self.passes("([where, text]) => document.querySelector(where).innerText.includes(text)", [where, text])

    def rows(self, where):
        return self.page.eval_on_selector_all(f"#{where} tr", ROWS)

    def control(self, **told):
        assert self.page.request.post(f"{self.url}told", data=json.dumps(told)).ok

    def polls(self):
        return self.page.request.get(f"{self.url}told").json()["polls"]


def visit(page, url):
    """Use the page as an operator would."""
    seen = {}
    v = Visit(page, url)
    page.clock.install(time=0)
    page.clock.pause_at(1000)
    page.goto(url)
    v.says("#tiles", "100 4 in hand")
    v.passes("() => document.querySelector('#tiles path').getAttribute('d').split('L').length > 5")
    seen["tiles"] = page.eval_on_selector_all(
        "#tiles > div", "all => all.map(each => each.innerText.replace(/\\s+/g, ' '))"
    )
    for where in ("servers", "statuses", "refused", "loop", "workers", "failed", "slowest"):
        seen[where] = v.rows(where)
    seen["pictures"] = page.locator("img").count()
    seen["poor"] = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        seen["poor"][scheme] = page.evaluate(CONTRAST)
    seen["wide"] = {}
    for width in (360, 320, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        seen["wide"][width] = page.evaluate("document.documentElement.scrollWidth")
        if width == 360:
            seen["labels"] = page.evaluate(
                "getComputedStyle(document.querySelector('#servers td.number'), '::before').content"
            )
    # a server is drained: a wrong token, the right one, which is kept, and the last one that is up
    page.click("#servers tr:nth-child(1) button")
    page.fill("#token", "wrong")
    page.click("#ask-yes")
    v.says("#told", "401: a token is needed")
    seen["kept"] = [page.evaluate("sessionStorage.length")]
    page.click("#servers tr:nth-child(1) button")
    page.fill("#token", "open-sesame")
    page.click("#ask-yes")
    v.says("#servers", "draining for 1 s")
    seen["kept"].append(page.evaluate("sessionStorage.length"))
    seen["focus"] = page.evaluate("document.activeElement.getAttribute('aria-label')")
    page.click("#servers tr:nth-child(2) button")
    seen["asked"] = page.inner_text("#ask-text")
    page.click("#ask-no")
    page.click("#servers tr:nth-child(1) button")
    v.says("#told", "gets requests again")
    page.click("#forget")
    seen["kept"].append(page.evaluate("sessionStorage.length"))
    # another server in its place: no rate of what was before
    v.control(begin_anew=True)
    v.says("#about", "up 2 h")
    seen["anew"] = page.inner_text("#tiles > div:first-child dd")
    # nobody looks
    page.evaluate("Object.defineProperty(document, 'hidden', { value: true, configurable: true })")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    before = v.polls()
    for _ in range(30):
        page.clock.run_for(1000)
    seen["unseen"] = v.polls() - before
    page.evaluate("Object.defineProperty(document, 'hidden', { value: false, configurable: true })")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    v.passes("() => document.getElementById('trouble').innerText === ''")
    # it says nothing, or what is no status; and comes back
    seen["away"] = []
    for told, words in (({"instead": [503, "gone"]}, "it answers 503"), ({"instead": [200, "{}"]}, "not understood")):
        v.control(**told)
        v.says("#trouble", words)
        seen["away"].append([page.inner_text("#state"), page.title()])
        v.control(instead=None)
        v.passes("() => document.getElementById('trouble').innerText === ''")
    seen["back"] = [page.inner_text("#state"), page.title()]
    return seen


def take_pictures(page, url, folder):
    """Take a picture at each width and in each scheme, when the lines have grown."""
    page.goto(url)
    while len(page.get_attribute("#tiles path", "d").split("L")) < 100:
        page.wait_for_timeout(500)
    for name, width, height, scheme in (
        ("light", 1120, 1000, "light"),
        ("dark", 1120, 1000, "dark"),
        ("phone", 360, 740, "light"),
        ("phone_dark", 360, 740, "dark"),
    ):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": height})
        page.screenshot(path=folder / f"{name}.png", full_page=name.startswith("phone"))
    return {}


def main():
    url, chromium, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    troubles = []
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            folder / "profile", executable_path=chromium, headless=True, args=FLAGS
        )
        page = context.pages[0]
        page.set_default_timeout(20_000)
        expected = ("401", "503")  # what Chromium itself says of the answers that are meant to fail
        page.on(
            "console",
            lambda message: (
                None
                if any(f"status of {status}" in message.text for status in expected)
                else troubles.append(f"{message.type}: {message.text}")
            ),
        )
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: troubles.append(f"dialog: {dialog.message}"))
        try:
            seen = take_pictures(page, url, folder) if "--pictures" in sys.argv else visit(page, url)
        except Exception as error:
            seen = {"error": str(error)}
        context.close()
    print(json.dumps({**seen, "troubles": troubles}))


if __name__ == "__main__":
    main()
