// The page's script. The query is in the page's address: only `go` changes the address, and `show` draws the page from
// it. Queries are sent to POST /query; see /docs.
"use strict";

const AT_ONCE = 60;            // results that are requested at a time
const MOST = 5000;             // results that one can scroll to
const KEPT = 20;               // queries whose results are kept, so that Back is instant
const SLOW = 200;              // milliseconds after which the page says that it is searching
const PARTS = ["words", "photo", "name", "like", "share", "right", "wrong"];

const $ = id => document.getElementById(id);
const numbers = new Intl.NumberFormat("en");
const kept = new Map();        // {query: {results, bits, milliseconds, whole}}, the newest last
let marks = new Map();         // {row: "right" or "wrong"}, both before and after they refine the query
let drawn = null;              // the query whose results are on the page
let answer = null;             // its entry in `kept`
let asking = null;             // AbortController of the request in progress
let facts = {};                // the answer of GET /health
let lastShown = null;          // row whose tile regains the focus


// ---------------------------------------------------------------- the address

function readAddress() {
  const given = new URLSearchParams(location.search);
  const rows = name => (given.get(name) || "").split(",").filter(text => /^\d+$/.test(text)).map(Number);
  const row = name => /^\d+$/.test(given.get(name) || "") ? Number(given.get(name)) : null;
  const share = parseFloat(given.get("share"));
  return {words: given.get("words") || "", photo: given.get("photo") || "", name: given.get("name") || "",
          like: row("like"), share: share >= 0 && share <= 1 ? share : 0.5, right: rows("right"), wrong: rows("wrong"),
          open: row("open")};
}

function address(query) {
  const parts = new URLSearchParams();
  for (const name of [...PARTS, "open"]) {
    const value = query[name];
    const plain = value === "" || value === null || value === undefined || (Array.isArray(value) && !value.length);
    if (!plain && !(name === "share" && value === 0.5)) parts.set(name, Array.isArray(value) ? value.join(",") : value);
  }
  return parts.size ? `?${parts}` : location.pathname;
}

function go(change, how = "pushState") {
  const next = {...readAddress(), ...change};
  if (address(next) === address(readAddress())) { show(); return; }
  history[how]({opened: how === "pushState" && next.open !== null}, "", address(next));
  show();
}

const newQuery = {photo: "", name: "", like: null, share: 0.5, right: [], wrong: [], open: null};
const key = query => address({...query, open: null});
const isEmpty = query => !query.words && !query.photo && query.like === null && !query.right.length;


// ---------------------------------------------------------------- asking

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  const content = await response.json().catch(() => ({error: `The server answered with status ${response.status}.`}));
  if (!response.ok) throw new Error(sentence(content.error || `The server answered with status ${response.status}.`));
  return content;
}

const sentence = text => text[0].toUpperCase() + text.slice(1) + (/[.?!]$/.test(text) ? "" : ".");

function askQuery(query, skip, signal) {
  const body = {skip, topk: AT_ONCE, share: query.share, right: query.right, wrong: query.wrong};
  if (query.words) body.words = query.words;
  if (query.photo) body.photo = query.photo;
  if (query.like !== null) body.like = query.like;
  return ask("query", {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body), signal});
}

async function show() {
  const query = readAddress();
  drawQuery(query);
  if (key(query) !== drawn) await search(query);
  if (address(readAddress()) === address(query)) drawDetail(query);
}

async function search(query) {
  asking?.abort();
  const mine = asking = new AbortController();
  drawn = key(query);
  marks = new Map([...query.right.map(row => [row, "right"]), ...query.wrong.map(row => [row, "wrong"])]);
  drawMarks();
  if (isEmpty(query)) { answer = null; drawStart(); return; }
  if (kept.has(drawn)) { answer = kept.get(drawn); drawResults(); return; }
  const waiting = setTimeout(() => say("Searching…"), SLOW);
  $("results").classList.add("old");
  try {
    const found = await askQuery(query, 0, mine.signal);
    answer = {...found, whole: found.results.length < AT_ONCE};
    kept.set(drawn, answer);
    if (kept.size > KEPT) kept.delete(kept.keys().next().value);
    drawResults();
  } catch (error) {
    if (error.name === "AbortError") return;
    answer = null;
    $("results").replaceChildren();
    drawFacts();
    say(error.message, true);
  } finally {
    clearTimeout(waiting);
    if (asking === mine) { asking = null; $("results").classList.remove("old"); }
  }
}

async function more() {
  if (asking || !answer || answer.whole || answer.results.length >= MOST) return;
  const mine = asking = new AbortController(), into = answer;
  try {
    const found = await askQuery(readAddress(), into.results.length, mine.signal);
    into.results.push(...found.results);
    into.whole = found.results.length < AT_ONCE;
    if (answer === into) drawTiles();
  } catch (error) {
    if (error.name !== "AbortError") say(error.message, true);
  } finally {
    if (asking === mine) asking = null;
  }
}

async function searchByPhoto(file) {
  if (!file) return;
  say("Reading the photo…");
  try {
    const name = file.name || "the photo";
    const seen = await ask(`embedding?name=${encodeURIComponent(name)}`, {method: "POST", body: file});
    await keepPreview(seen.photo, file);
    go({...newQuery, words: $("words").value.trim(), photo: seen.photo, name});
  } catch (error) {
    say(error.message, true);
  }
}


// ---------------------------------------------------------------- drawing

function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function say(text, fault = false) {
  $("status").textContent = text;
  $("status").classList.toggle("fault", fault);
  $("hint").hidden = true;
}

const fileName = path => path.split("/").pop();
const percent = share => `${Math.round(100 * share)}% photo`;
const previewKey = photo => `preview ${photo.slice(0, 64)}`;

function drawQuery(query) {
  if (document.activeElement !== $("words") || key(query) !== drawn) $("words").value = query.words;
  const seen = query.photo || query.like !== null;
  $("seen").hidden = !seen;
  $("balance").hidden = !(seen && query.words);
  $("share").value = query.share;
  $("share").setAttribute("aria-valuetext", percent(query.share));
  if (seen) {
    const preview = query.photo ? sessionStorage.getItem(previewKey(query.photo)) : `photos/${query.like}/thumbnail`;
    $("seen-photo").hidden = !preview;
    if (preview) $("seen-photo").src = preview;
    $("seen-name").textContent = query.photo ? query.name || "Your photo" : `Like ${query.name || `photo ${query.like}`}`;
  }
  document.title = [query.words, seen && $("seen-name").textContent].filter(Boolean).join(" + ") || "Photos";
  drawMarks();
}

function drawMarks() {
  const count = kind => [...marks.values()].filter(mark => mark === kind).length;
  $("marks").hidden = !marks.size;
  $("marks-text").textContent = `${count("right")} right, ${count("wrong")} wrong`;
  $("query").hidden = $("seen").hidden && $("marks").hidden;
  const query = readAddress();
  const applied = query.right.length + query.wrong.length === marks.size
    && query.right.every(row => marks.get(row) === "right") && query.wrong.every(row => marks.get(row) === "wrong");
  $("refine").hidden = applied || (!count("right") && isEmpty({...query, right: []}));
}

function drawResults() {
  $("results").replaceChildren();
  drawFacts();
  if (!answer.results.length) {
    say(answer.sentence ? sentence(answer.sentence) : "No photos were found.", true);
    suggest(readAddress());
    return;
  }
  say(`${numbers.format(answer.photos)} photos, most similar first`);
  drawTiles();
}

function drawTiles() {
  const list = $("results");
  const tiles = answer.results.slice(list.children.length).map(makeTile);
  list.append(...tiles);
  if (!list.querySelector('.open[tabindex="0"]') && list.firstChild) list.firstChild.querySelector(".open").tabIndex = 0;
  if (ends.getBoundingClientRect().top < innerHeight + 600) requestAnimationFrame(more);
}

function makeTile(result) {
  const name = fileName(result.path);
  const photo = make("img", {src: `photos/${result.row}/thumbnail`, alt: "", loading: "lazy", decoding: "async"});
  const cosine = result.cosine.toFixed(2);
  const open = make("button", {type: "button", className: "open", tabIndex: -1, title: name}, photo,
                    make("span", {className: "cosine", textContent: cosine}));
  open.setAttribute("aria-label", `${name}, cosine ${cosine}`);
  photo.addEventListener("error", () => photo.replaceWith(
    make("span", {className: "gone", textContent: "This photo cannot be shown"})));
  open.addEventListener("click", () => go({open: result.row}));
  const rate = make("div", {className: "rate"}, ...[["right", "✓"], ["wrong", "✗"]].map(([kind, sign]) => {
    const button = make("button", {type: "button", tabIndex: -1, textContent: sign, title: `Mark as ${kind}`});
    button.setAttribute("aria-label", `Mark ${name} as ${kind}`);
    button.addEventListener("click", () => mark(result.row, kind));
    return button;
  }));
  const tile = make("li", {className: "tile"}, open, rate);
  tile.dataset.row = result.row;
  drawMark(tile);
  return tile;
}

function drawMark(tile) {
  const kind = marks.get(Number(tile.dataset.row));
  tile.querySelector(".mark")?.remove();
  if (kind) tile.append(make("span", {className: `mark is-${kind}`, textContent: kind}));
}

function mark(row, kind) {
  if (marks.get(row) === kind) marks.delete(row); else marks.set(row, kind);
  document.querySelectorAll(`.tile[data-row="${row}"]`).forEach(drawMark);
  for (const name of ["right", "wrong"]) $(name).setAttribute("aria-pressed", marks.get(row) === name);
  drawMarks();
}

function drawStart() {
  $("results").replaceChildren();
  drawFacts();
  say("");
  if (facts.no_words) drawHint("Choose a photo, drop one on this page or paste one to find the photos most like it.");
  else if (facts.tags) suggest({words: ""}, "Type words, or choose, drop or paste a photo. Words to start with:");
}

function drawHint(text, ...more) {
  $("hint").replaceChildren(make("p", {textContent: text}), ...more);
  $("hint").hidden = false;
}

async function suggest(query, text = "Try one of these words, or a photo:") {
  if (facts.no_words) { drawHint("Try another photo."); return; }
  const last = query.words.trim().split(/\s+/).pop();
  try {
    let {words} = await ask(`words?prefix=${encodeURIComponent(last.slice(0, 2))}`);
    if (!words.length) ({words} = await ask("words?prefix="));
    if (words.length && key(readAddress()) === drawn && !answer?.results.length) {
      drawHint(text, tagList(make("ul", {className: "tags"}), words));
    }
  } catch { /* the message that is already there stays */ }
}

function tagList(list, words, cosines = []) {
  list.replaceChildren(...words.map((word, place) => {
    const button = make("button", {type: "button", textContent: word});
    if (place in cosines) button.append(make("small", {textContent: cosines[place].toFixed(2)}));
    button.addEventListener("click", () => go({...newQuery, words: word}));
    return make("li", {}, button);
  }));
  return list;
}

function drawFacts() {
  const parts = facts.photos === undefined ? [] : [`${numbers.format(facts.photos)} photos`, `${facts.bits} bits a photo`];
  if (answer) parts.push(`${answer.milliseconds.toFixed(answer.milliseconds < 10 ? 1 : 0)} milliseconds`);
  $("facts").textContent = parts.join(" · ");
}

async function keepPreview(photo, file) {
  try {
    const image = await createImageBitmap(file);
    const scale = Math.min(1, 128 / Math.max(image.width, image.height));
    const canvas = make("canvas", {width: Math.max(1, image.width * scale), height: Math.max(1, image.height * scale)});
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    sessionStorage.setItem(previewKey(photo), canvas.toDataURL("image/jpeg", 0.8));
  } catch { /* the browser cannot decode it or has no room: only its name is shown */ }
}


// ---------------------------------------------------------------- one photo, large

async function drawDetail(query) {
  const dialog = $("detail");
  if (query.open === null) {
    if (dialog.open) dialog.close();
    if (lastShown !== null) document.querySelector(`.tile[data-row="${lastShown}"] .open`)?.focus();
    lastShown = null;
    return;
  }
  const row = lastShown = query.open;
  const found = answer?.results.find(result => result.row === row);
  $("detail-title").textContent = found ? fileName(found.path) : `Photo ${row}`;
  $("detail-score").textContent = found ? `Cosine ${found.cosine.toFixed(4)}, score ${found.score.toFixed(4)}` : "";
  $("detail-path").textContent = found ? found.path : "";
  $("detail-tags").replaceChildren();
  $("detail-gone").hidden = true;
  $("detail-photo").hidden = false;
  $("detail-photo").alt = found ? fileName(found.path) : `Photo ${row}`;
  $("detail-photo").src = `photos/${row}`;
  $("copy").textContent = "Copy path";
  $("previous").disabled = !neighbour(-1);
  $("next").disabled = !neighbour(1);
  for (const name of ["right", "wrong"]) $(name).setAttribute("aria-pressed", marks.get(row) === name);
  if (!dialog.open) { dialog.showModal(); $("like").focus(); }
  try {
    const about = await ask(`photos/${row}/tags`);
    if (lastShown !== row) return;
    $("detail-title").textContent = $("detail-photo").alt = fileName(about.path);
    $("detail-path").textContent = about.path;
    const tags = about.tags.map(tag => [tag.names[0], tag.cosine]);
    tagList($("detail-tags"), tags.map(([name]) => name), tags.map(([, cosine]) => cosine));
    $("detail-photo").alt = `${fileName(about.path)}: ${tags.slice(0, 3).map(([name]) => name).join(", ")}`;
  } catch (error) {
    if (lastShown === row) showGone(error.message);
  }
}

function showGone(text) {
  $("detail-photo").hidden = true;
  $("detail-gone").textContent = text;
  $("detail-gone").hidden = false;
}

function neighbour(step) {
  const place = answer ? answer.results.findIndex(result => result.row === readAddress().open) : -1;
  return place < 0 ? undefined : answer.results[place + step];
}

function step(by) {
  const next = neighbour(by);
  if (next) go({open: next.row}, "replaceState");
  if (answer && !neighbour(5)) more();
}

function leave() {
  if (readAddress().open === null) return;
  if (history.state?.opened) history.back(); else go({open: null}, "replaceState");
}

async function copyPath() {
  const path = $("detail-path").textContent;
  try {
    await navigator.clipboard.writeText(path);
    $("copy").textContent = "Copied";
  } catch {  // the clipboard is closed to pages that came over plain HTTP from another machine
    getSelection().selectAllChildren($("detail-path"));
    $("copy").textContent = "Selected: press Ctrl+C";
  }
}


// ---------------------------------------------------------------- completion of words

let chosen = -1;               // index of the completion that the arrow keys selected
let typed = 0;                 // counts keystrokes, so that late answers are dropped

async function complete() {
  const mine = ++typed, last = $("words").value.split(/\s+/).pop();
  if (!last || facts.no_words) { closeCompletions(); return; }
  await new Promise(resolve => setTimeout(resolve, 80));
  if (mine !== typed) return;
  const {words} = await ask(`words?prefix=${encodeURIComponent(last)}`).catch(() => ({words: []}));
  if (mine !== typed || document.activeElement !== $("words")) return;
  if (!words.length || (words.length === 1 && words[0] === last)) { closeCompletions(); return; }
  $("completions").replaceChildren(...words.map((word, place) => {
    const option = make("li", {id: `completion-${place}`, role: "option", textContent: word});
    option.setAttribute("aria-selected", "false");
    option.addEventListener("mousedown", event => { event.preventDefault(); take(word); });
    return option;
  }));
  $("completions").hidden = false;
  $("words").setAttribute("aria-expanded", "true");
  choose(-1);
}

function choose(place) {
  chosen = place;
  [...$("completions").children].forEach((option, i) => option.setAttribute("aria-selected", i === place));
  if (place < 0) { $("words").removeAttribute("aria-activedescendant"); return; }
  $("words").setAttribute("aria-activedescendant", `completion-${place}`);
  $("completions").children[place].scrollIntoView({block: "nearest"});
}

function closeCompletions() {
  typed++;
  chosen = -1;
  $("completions").hidden = true;
  $("words").setAttribute("aria-expanded", "false");
  $("words").removeAttribute("aria-activedescendant");
}

function take(word) {
  $("words").value = [...$("words").value.split(/\s+/).slice(0, -1), word].join(" ");
  submit();
}

function submit() {
  closeCompletions();
  const query = readAddress(), words = $("words").value.trim();
  go({...newQuery, photo: query.photo, name: query.name, like: query.like, share: query.share, words});
}


// ---------------------------------------------------------------- events

const ends = $("more");
$("unmark").before(make("button", {type: "button", id: "refine", textContent: "Refine with these"}));

$("search").addEventListener("submit", event => { event.preventDefault(); submit(); });
$("words").addEventListener("input", complete);
$("words").addEventListener("blur", closeCompletions);
$("words").addEventListener("keydown", event => {
  const options = $("completions").hidden ? 0 : $("completions").children.length;
  if (options && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
    const by = event.key === "ArrowDown" ? 1 : -1;
    choose((chosen + by + options + 1 + 1) % (options + 1) - 1);
    event.preventDefault();
  } else if (event.key === "Enter" && chosen >= 0) {
    event.preventDefault();
    take($("completions").children[chosen].textContent);
  } else if (event.key === "Escape" && options) {
    event.preventDefault();
    closeCompletions();
  } else if (event.key === "ArrowDown") {
    $("results").querySelector('.open[tabindex="0"]')?.focus();
    event.preventDefault();
  }
});

$("choose").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => { searchByPhoto($("file").files[0]); $("file").value = ""; });
$("unsee").addEventListener("click", () => { go({photo: "", name: "", like: null, share: 0.5}); $("words").focus(); });
$("share").addEventListener("input", () => $("share").setAttribute("aria-valuetext", percent(Number($("share").value))));
$("share").addEventListener("change", () => go({share: Number($("share").value)}, "replaceState"));
$("refine").addEventListener("click", () => {
  const rows = kind => [...marks].filter(([, mark]) => mark === kind).map(([row]) => row);
  go({right: rows("right"), wrong: rows("wrong")});
  $("results").focus();
});
$("unmark").addEventListener("click", () => {
  marks = new Map();
  document.querySelectorAll(".tile").forEach(drawMark);
  drawMarks();
  go({right: [], wrong: []});
  $("words").focus();
});

$("results").addEventListener("keydown", event => {
  const tiles = [...$("results").children], here = tiles.indexOf(event.target.closest(".tile"));
  if (here < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
  const columns = getComputedStyle($("results")).gridTemplateColumns.split(" ").length;
  const steps = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -here, End: tiles.length - 1 - here};
  const row = Number(tiles[here].dataset.row);
  if (event.key === "+" || event.key === "-") mark(row, event.key === "+" ? "right" : "wrong");
  else if (event.key === "ArrowUp" && here < columns) $("words").focus();
  else if (event.key in steps) tiles[Math.min(here + steps[event.key], tiles.length - 1)]?.querySelector(".open").focus();
  else return;
  event.preventDefault();
});
$("results").addEventListener("focusin", event => {
  if (!event.target.classList.contains("open")) return;
  $("results").querySelectorAll('.open[tabindex="0"]').forEach(open => { open.tabIndex = -1; });
  event.target.tabIndex = 0;
});

$("detail").addEventListener("cancel", event => { event.preventDefault(); leave(); });
$("detail").addEventListener("close", leave);
$("detail").addEventListener("click", event => { if (event.target === $("detail")) leave(); });
$("detail").addEventListener("keydown", event => {
  if (event.key === "ArrowLeft") step(-1);
  else if (event.key === "ArrowRight") step(1);
});
$("detail-photo").addEventListener("error", () => showGone("This photo is no longer there or cannot be decoded."));
$("close").addEventListener("click", leave);
$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
$("copy").addEventListener("click", copyPath);
$("right").addEventListener("click", () => mark(readAddress().open, "right"));
$("wrong").addEventListener("click", () => mark(readAddress().open, "wrong"));
$("like").addEventListener("click", () => {
  const row = readAddress().open;
  lastShown = null;
  go({...newQuery, words: "", like: row, name: fileName($("detail-path").textContent)});
  scrollTo(0, 0);
});

document.addEventListener("keydown", event => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || $("detail").open) return;
  if (event.target.tagName === "INPUT" && event.target.type === "search") return;
  event.preventDefault();
  $("words").focus();
});
document.addEventListener("paste", event => {
  const file = [...event.clipboardData.files][0];
  if (file) { event.preventDefault(); searchByPhoto(file); }
});

let inside = 0;                // number of elements that the dragged file is over
const carriesFile = event => [...(event.dataTransfer?.types || [])].includes("Files");
document.addEventListener("dragenter", event => { if (carriesFile(event)) { inside++; $("drop").hidden = false; } });
document.addEventListener("dragleave", event => { if (carriesFile(event) && --inside <= 0) { inside = 0; $("drop").hidden = true; } });
document.addEventListener("dragover", event => { if (carriesFile(event)) event.preventDefault(); });
document.addEventListener("drop", event => {
  inside = 0;
  $("drop").hidden = true;
  if (!carriesFile(event)) return;
  event.preventDefault();
  leave();
  searchByPhoto(event.dataTransfer.files[0]);
});

addEventListener("popstate", show);
new IntersectionObserver(seen => { if (seen.some(entry => entry.isIntersecting)) more(); }, {rootMargin: "600px"}).observe(ends);

async function begin() {
  try {
    facts = await ask("health");
  } catch (error) {
    say(error.message, true);
    return;
  }
  if (facts.no_words) {
    $("words").disabled = true;
    $("words").placeholder = "Search by words is off";
    $("words").title = facts.no_words;
    $("query").after(make("p", {id: "no-words", className: "reason", textContent: facts.no_words}));
  }
  await show();
}

begin();
