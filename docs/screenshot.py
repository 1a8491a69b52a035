"""The pictures of the README: the page at `/` while the local model answers, light and dark.

    pip install playwright        # in an environment of its own; Debian's chromium is the browser
    python3 run.py                # in another terminal
    python docs/screenshot.py [--url http://localhost:8000/] [--into docs]

`--all` adds the whole page, wide and narrow, to look at.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from shutil import which

from playwright.sync_api import Browser, Page, expect, sync_playwright

MESSAGE = "Tell me about llamas in two sentences."


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--url", default="http://localhost:8000/")
    options.add_argument("--into", default=Path(__file__).parent, type=Path)
    options.add_argument("--all", action="store_true")
    args = options.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=which("chromium"), args=["--no-sandbox", "--no-proxy-server"]
        )
        for theme in ("light", "dark"):
            with_answer(opened(browser, args.url, theme, 1280, 820)).screenshot(
                path=args.into / f"page-{theme}.png"
            )
            for page in everything(browser, args.url, theme) if args.all else ():
                width = page.viewport_size["width"] if page.viewport_size else 0
                page.screenshot(path=args.into / f"all-{theme}-{width}.png", full_page=True)


def everything(browser: Browser, url: str, theme: str) -> Iterator[Page]:
    for width in (1280, 390):
        page = with_answer(opened(browser, url, theme, width, 844))
        page.locator("summary").first.click()
        yield page


def opened(browser: Browser, url: str, theme: str, width: int, height: int) -> Page:
    page = browser.new_page(
        viewport={"width": width, "height": height},
        device_scale_factor=2 if width > 1000 else 3,
        color_scheme="dark" if theme == "dark" else "light",
    )
    page.goto(url)
    return page


def with_answer(page: Page) -> Page:
    page.fill("#message", MESSAGE)
    # It comes with the listing of the models.
    expect(page.locator("#model")).not_to_have_value("")
    page.click("#send")
    page.get_by_text("ended after").wait_for(timeout=120_000)
    page.mouse.wheel(0, -10_000)
    return page


if __name__ == "__main__":
    main()
