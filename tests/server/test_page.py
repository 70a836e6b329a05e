"""The page in a real browser: Debian's Chromium, driven by Playwright. Accessibility is checked by axe-core.

Skipped where there is no Chromium (`apt-get install chromium`) or no Playwright; the last test also where there is no
axe-core (`npm install axe-core` in the project's folder).
"""
import re
import shutil

import pytest

pytest.importorskip("faiss")
pytest.importorskip("starlette")
pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")

from playwright.sync_api import expect, sync_playwright

import page_service
from retrieval import index
from servers import page_served
from storage.images import read_image
from tiny import PROJECT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
AXE = PROJECT / "node_modules" / "axe-core" / "axe.min.js"
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
PHOTOS = 80  # more than the 60 that are asked for at once

pytestmark = [pytest.mark.slow, pytest.mark.browser,
              pytest.mark.skipif(not CHROMIUM, reason="no Chromium: apt-get install chromium")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "index"
    page_service.make_index(folder, PHOTOS)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with page_served(folder) as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, server):
    """open_page(address, **options of the window): the page, whose console has to stay empty."""
    contexts, messages = [], []

    def open_page(address="", **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: messages.append(request.url)
                if not request.url.startswith((f"http://127.0.0.1:{server.port}/", "data:", "blob:")) else None)
        page.goto(f"http://127.0.0.1:{server.port}/{address}")
        expect(page.locator("#facts")).to_contain_text("photos")
        return page
    yield open_page
    for context in contexts:
        context.close()
    assert messages == []


def rows(page):
    """The rows of the results on the page, in order."""
    expect(page.locator("#results:not(.old) .tile").first).to_be_visible()
    return page.eval_on_selector_all(".tile", "tiles => tiles.map(tile => Number(tile.dataset.row))")


def nearest(folder, row):
    """The row of the photo that is most like the photo of a row, by scores: not always itself."""
    whole = index.load(folder)
    return whole.search(page_service.embed(read_image(whole.image_path(row)))[None], 1)[1][0, 0]


def settled(page):
    """Wait until the results are those of the address."""
    expect(page.locator("#results.old")).to_have_count(0)


def give(page, folder, row, way="drop"):
    """Give the photo of a row to the page as a person drops or pastes it."""
    photo = index.load(folder).image_path(row)
    page.evaluate("""async ([bytes, name, way]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], name, {type: "image/jpeg"}));
        for (const kind of way === "drop" ? ["dragenter", "dragover", "drop"] : ["paste"])
            document.body.dispatchEvent(way === "drop"
                ? new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true})
                : new ClipboardEvent(kind, {clipboardData: data, bubbles: true, cancelable: true}));
    }""", [list(photo.read_bytes()), photo.name, way])
    expect(page.locator("#seen-name")).to_have_text(photo.name)


def test_words_are_completed_and_found(open_page, folder):
    page = open_page()
    page.locator("#words").press_sequentially("sk")
    expect(page.get_by_role("option").first).to_have_text("sky")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"\?words=sky$"))
    whole = index.load(folder)
    assert rows(page)[:60] == whole.search(whole.words("sky")[None], 60)[1][0].tolist()
    expect(page.locator("#facts")).to_contain_text(re.compile(rf"{PHOTOS} photos · 16 bits a photo · [\d.]+ millisec"))
    expect(page.locator(".tile img").first).to_have_js_property("complete", True)
    assert page.eval_on_selector(".tile img", "image => image.naturalWidth") > 0


def test_more_results_come_on_scrolling(open_page):
    page = open_page("?words=sky")
    rows(page)
    page.mouse.wheel(0, 20_000)
    expect(page.locator(".tile")).to_have_count(PHOTOS)
    assert sorted(rows(page)) == list(range(PHOTOS))


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_photo_is_searched_by_and_mixed_with_words(open_page, folder, way):
    page = open_page()
    give(page, folder, 5, way)
    assert rows(page)[0] == nearest(folder, 5)
    expect(page.locator("#seen-photo")).to_have_attribute("src", re.compile("^data:image/jpeg"))
    page.fill("#words", "sky")
    page.keyboard.press("Enter")
    expect(page.locator("#share")).to_be_visible()
    page.locator("#share").fill("0")
    expect(page).to_have_url(re.compile("share=0"))
    settled(page)
    whole = index.load(folder)
    assert rows(page)[:10] == whole.search(whole.words("sky")[None], 10)[1][0].tolist()
    page.reload()
    expect(page.locator("#seen-name")).to_have_text(index.load(folder).image_path(5).name)
    page.click("#unsee")
    expect(page.locator("#seen")).to_be_hidden()


def test_a_photo_is_chosen_from_the_disk(open_page, folder):
    page = open_page()
    with page.expect_file_chooser() as chooser:
        page.click("#choose")
    chooser.value.set_files(index.load(folder).image_path(9))
    assert rows(page)[0] == nearest(folder, 9)


def test_a_result_is_opened_and_leads_on_and_back_leads_back(open_page):
    page = open_page("?words=sky")
    found = rows(page)
    page.locator(".tile .open").nth(2).click()
    expect(page.locator("#detail")).to_be_visible()
    expect(page.locator("#detail-tags button").first).to_be_visible()
    expect(page.locator("#detail-path")).to_contain_text(".jpg")
    page.keyboard.press("ArrowRight")
    expect(page).to_have_url(re.compile(f"open={found[3]}$"))
    page.click("#like")
    expect(page.locator("#detail")).to_be_hidden()
    expect(page).to_have_url(re.compile(f"like={found[3]}"))
    expect(page.locator("#seen-name")).to_contain_text("Like ")
    page.go_back()
    expect(page.locator("#detail")).to_be_visible()
    page.go_back()
    expect(page.locator("#detail")).to_be_hidden()
    expect(page.locator("#words")).to_have_value("sky")
    assert rows(page)[:60] == found[:60]


def test_a_likely_tag_is_a_search(open_page):
    page = open_page("?words=sky&open=3")
    tag = page.locator("#detail-tags button").first
    name = re.match(r"\D+", tag.inner_text())[0].strip()
    tag.click()
    expect(page.locator("#detail")).to_be_hidden()
    expect(page.locator("#words")).to_have_value(name)


def test_the_path_is_copied(open_page, folder):
    page = open_page("?words=sky&open=3", permissions=["clipboard-read", "clipboard-write"])
    expect(page.locator("#detail-tags button").first).to_be_visible()
    page.click("#copy")
    expect(page.locator("#copy")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == str(index.load(folder).image_path(3))


def test_marks_refine_the_query(open_page):
    page = open_page("?words=sky")
    found = rows(page)
    page.locator(".tile").nth(5).hover()
    page.get_by_role("button", name=re.compile("^Mark .* as right$")).nth(5).click()
    page.locator(".tile .open").nth(1).click()
    page.click("#wrong")
    page.keyboard.press("Escape")
    expect(page.locator("#marks-text")).to_have_text("1 right, 1 wrong")
    page.click("#refine")
    expect(page).to_have_url(re.compile(f"right={found[5]}&wrong={found[1]}$"))
    expect(page.locator("#refine")).to_be_hidden()
    settled(page)
    assert rows(page).index(found[5]) <= 5
    page.click("#unmark")
    expect(page).to_have_url(re.compile(r"\?words=sky$"))


def test_what_fails_is_a_sentence(open_page, folder):
    page = open_page("?words=skyy")
    expect(page.locator("#status")).to_contain_text("spelt most like it: sky")
    page.get_by_role("button", name="sky", exact=True).click()
    assert rows(page)


def test_what_is_not_a_photo_is_a_sentence(browser, server):
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{server.port}/")
    page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no photo"})
    expect(page.locator("#status")).to_have_text("Notes.txt is not an image that OpenCV reads.")
    page.close()


def test_a_server_that_has_ended_is_a_sentence(browser, folder):
    page = browser.new_page()
    with page_served(folder) as server:
        page.goto(f"http://127.0.0.1:{server.port}/")
        expect(page.locator("#facts")).to_contain_text("photos")
    page.fill("#words", "sky")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("The server does not answer. Is it still running?")
    page.close()


def test_all_can_be_done_by_keyboard(open_page):
    page = open_page()
    page.keyboard.press("/")
    page.keyboard.type("sky")
    page.keyboard.press("Enter")
    found = rows(page)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("+")
    expect(page.locator(".tile").nth(1).locator(".mark")).to_have_text("right")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(f"open={found[1]}$"))
    page.keyboard.press("Escape")
    expect(page.locator("#detail")).to_be_hidden()
    assert page.evaluate("document.activeElement.closest('.tile').dataset.row") == str(found[1])
    page.keyboard.press("ArrowUp")
    expect(page.locator("#words")).to_be_focused()


def test_a_narrow_window_scrolls_down_only(open_page):
    for address in ("", "?words=sky", "?words=sky&like=3", "?words=sky&open=3", "docs"):
        page = open_page(address if address != "docs" else "", viewport={"width": 320, "height": 640})
        if address == "docs":
            page.goto(page.url + "docs")
        assert page.evaluate("document.documentElement.scrollWidth") <= 320, address


def test_without_words_the_page_says_why(browser, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "index")
    content = index.load(tmp_path / "index").content
    content.tag_names, content.tag_embeddings = [], content.tag_embeddings[:0]
    index.save(tmp_path / "index", content)
    with page_served(tmp_path / "index") as server:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.port}/")
        expect(page.locator("#no-words")).to_contain_text("too few tags")
        expect(page.locator("#words")).to_be_disabled()
        page.set_input_files("#file", index.load(folder).image_path(5))
        assert rows(page)[0] == nearest(folder, 5)
        page.close()


@pytest.mark.skipif(not AXE.is_file(), reason="no axe-core: npm install axe-core in the project's folder")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("address", ["", "?words=sky&like=3&right=5", "?words=sky&open=3", "?words=skyy", "docs"])
def test_axe_finds_no_serious_fault(open_page, address, scheme):
    page = open_page(address if address != "docs" else "", color_scheme=scheme)
    if address == "docs":
        page.goto(page.url + "docs")
    elif "open" in address:
        expect(page.locator("#detail-tags button").first).to_be_visible()
    elif "skyy" not in address and address:
        rows(page)
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")["violations"]
    faults = [(fault["id"], fault["impact"], [node["html"][:150] for node in fault["nodes"]][:3]) for fault in found]
    assert [fault for fault in faults if fault[1] in ("serious", "critical")] == []
