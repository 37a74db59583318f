"""Looks at the live page of a run in headless Chromium, as a user does.

    page.py URL TOKEN DIR      screenshots of a desktop and of a phone in DIR

tests/page.rs calls it on a run under way: the page loads without an error and without asking anything of another host, numbers move, a cluster
opens and closes by keyboard with its photographs, an action without the token is refused and says so, one with it is done. Exit status: 0 all
the same, else what is not.
"""

import sys
import time
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

PATIENCE_MS = 60_000


def must(is_so, what):
    if not is_so:
        sys.exit(f"the page: {what}")


def until(page, what, condition):
    """Waits for a condition in JavaScript, asked from outside: the page allows no code from text in it."""
    started = time.monotonic()
    while not page.evaluate(condition):
        must(time.monotonic() - started < PATIENCE_MS / 1000, f"waited in vain for {what}")
        time.sleep(0.1)


def watched(page, problems):
    page.set_default_timeout(PATIENCE_MS)
    page.on("pageerror", lambda error: problems.append(f"error {error}"))
    page.on("console", lambda line: problems.append(f"console {line.text}") if line.type == "error" else None)
    page.on("request", lambda request: problems.append(f"asks {request.url}") if not request.url.startswith((url, "data:")) else None)
    return page


def step(page):
    until(page, "a step", "/step [\\d,]+/.test(document.getElementById('position').textContent)")
    words = page.text_content("#position")
    return int(words.split()[1].replace(",", ""))


def loaded(page):
    until(page, "curves", "document.querySelectorAll('#plots svg').length >= 5")
    until(page, "photographs", "document.querySelectorAll('#clusters img[src]').length >= 16")
    until(page, "filters", "document.getElementById('filters').naturalWidth > 100")


def desktop(browser, problems):
    page = watched(browser.new_page(viewport={"width": 1280, "height": 900}), problems)
    page.goto(url)
    loaded(page)
    first = step(page)
    until(page, "more steps", f"Number(document.getElementById('position').textContent.split(' ')[1].replaceAll(',', '')) > {first}")
    must(page.locator("#stages li").count() == 5, "five stages")

    # a cluster, by keyboard; the list is drawn anew at each cycle, so the run is made to stand first
    must("refused" in refused(page), "an action without a token is refused")
    page.fill("#token", token)
    page.click("#pause")
    expect(page.locator("#answer")).to_contain_text("paused", timeout=PATIENCE_MS)
    expect(page.locator("#status")).to_contain_text("paused", timeout=PATIENCE_MS)
    page.wait_for_timeout(2_500)
    page.locator("#clusters button").first.focus()
    page.keyboard.press("Enter")
    until(page, "members", "document.querySelectorAll('#members img[src]').length >= 3")
    nearest = page.locator("#members img").first.get_attribute("data-id")
    page.click("button[data-order=farthest]")
    until(page, "the farthest", f"![undefined, '{nearest}'].includes(document.querySelector('#members img[src]')?.dataset.id)")
    page.screenshot(path=folder / "cluster.png")
    page.keyboard.press("Escape")
    must(not page.evaluate("document.getElementById('cluster').open"), "Escape closes a cluster")
    page.click("#pipeline-section summary")
    expect(page.locator("#pipeline")).to_contain_text("[stream]")
    page.click("#pipeline-section summary")
    page.screenshot(path=folder / "desktop.png", full_page=True)
    with page.expect_download() as download:
        page.locator("#snapshots a", has_text="manifest.json").first.click()
    must(Path(download.value.path()).stat().st_size > 100, "a file of a snapshot is downloaded")
    page.click("#pause")
    until(page, "going on", "!document.getElementById('status').textContent.includes('paused')")
    page.close()


def refused(page):
    page.fill("#token", "not the token")
    page.click("button[value=snapshot]")
    until(page, "a refusal", "document.getElementById('answer').textContent !== ''")
    return page.text_content("#answer")


def phone(browser, problems):
    context = browser.new_context(viewport={"width": 390, "height": 844}, device_scale_factor=2, is_mobile=True, has_touch=True)
    page = watched(context.new_page(), problems)
    page.goto(f"{url}#token={token}")
    loaded(page)
    must(token not in page.url, "the token does not stay in the address")
    wide = page.evaluate("document.documentElement.scrollWidth")
    must(wide <= 390, f"nothing is wider than a phone: {wide} pixels")
    small = page.evaluate("[...document.querySelectorAll('button, summary, input')].filter((e) => e.offsetParent && e.offsetHeight < 32).length")
    must(small == 0, "buttons are large enough for a finger")
    page.screenshot(path=folder / "phone.png", full_page=True)
    context.close()


def main():
    problems = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"])
        desktop(browser, problems)
        phone(browser, problems)
        browser.close()
    # the refusal that was asked for is an error on the console
    problems = [problem for problem in problems if "401" not in problem]
    must(not problems, "; ".join(problems))


if __name__ == "__main__":
    url, token, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    main()
