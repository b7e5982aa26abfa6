// What the book's pages add to the theme: marks for words that a search found,
// contents that follow to the end of a page, folds, and formulas copied as TeX.
"use strict";

// Mark the words that the search page names in the address, until Escape is pressed.
(() => {
  const words = new URLSearchParams(location.search).get("found");
  const article = document.querySelector("article");
  if (!words || !article || !CSS.highlights) return;
  const escaped = words.split("|").filter(Boolean)
    .map((word) => word.replace(/[.*+\-?^${}()[\]\\]/g, "\\$&"));
  const expression = new RegExp(
    escaped.map((word) => (/^[\u3040-\u30ff\u3400-\u9fff]+$/u.test(word) ? word
      : `(?<![\\p{L}\\p{N}])${word}(?![\\p{L}\\p{N}])`)).join("|"), "giu");
  const ranges = [];
  const walker = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    for (const { 0: word, index } of walker.currentNode.data.matchAll(expression)) {
      const range = new StaticRange({
        startContainer: walker.currentNode, startOffset: index,
        endContainer: walker.currentNode, endOffset: index + word.length,
      });
      ranges.push(range);
    }
  }
  CSS.highlights.set("fbt-found", new Highlight(...ranges));
  addEventListener("keydown", ({ key }) => {
    if (key === "Escape") CSS.highlights.delete("fbt-found");
  });
  // A word in a fold is of no use.
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (const { startContainer } of ranges) {
    const fold = startContainer.parentElement.closest("details");
    if (fold && target?.contains(fold)) fold.open = true;
  }
})();

// The theme's contents mark a heading when it passes through the upper third of the
// window, which the last ones of a page never do. Here the line moves down as the
// page's end comes near.
(() => {
  const links = [...document.querySelectorAll("#pst-page-toc-nav a")];
  const headings = links.map((link) =>
    document.getElementById(decodeURIComponent(link.hash.slice(1))));
  if (links.length === 0 || !headings.every(Boolean)) return;

  function mark() {
    const { scrollHeight, clientHeight, scrollTop } = document.documentElement;
    const left = scrollHeight - clientHeight - scrollTop;
    const line = clientHeight * 0.3 + Math.max(0, clientHeight * 0.7 - left);
    const passed = headings.findLastIndex(
      (heading) => heading.getBoundingClientRect().top <= line);
    const current = links[Math.max(passed, 0)];
    for (const link of links) {
      link.classList.toggle("active", link === current);
      if (link === current) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
    for (const entry of document.querySelectorAll("#pst-page-toc-nav .toc-entry")) {
      entry.classList.toggle("active", entry.contains(current));
    }
  }

  let timer = 0;
  function soon() { // after the theme
    clearTimeout(timer);
    timer = setTimeout(mark, 120);
  }
  addEventListener("scroll", soon, { passive: true });
  addEventListener("resize", soon);
  soon();
})();

// What is in a fold scrolls once it opens. The theme looks for that after a resize.
addEventListener("toggle", () => dispatchEvent(new Event("resize")), true);

// A copied formula is its TeX: its symbols alone would say nothing of its structure.
document.addEventListener("copy", (event) => {
  const selection = getSelection();
  if (!selection.rangeCount) return;
  const range = selection.getRangeAt(0).cloneRange();
  for (const [edge, move] of [["start", "setStartBefore"], ["end", "setEndAfter"]]) {
    const node = range[`${edge}Container`];
    const formula = (node.nodeType === Node.TEXT_NODE ? node.parentElement : node)
      .closest("math");
    if (formula) range[move](formula);
  }
  const box = document.createElement("div");
  box.append(range.cloneContents());
  const formulas = box.querySelectorAll("math");
  if (formulas.length === 0) return;
  const html = box.innerHTML;
  for (const formula of formulas) {
    const sign = formula.getAttribute("display") === "block" ? "$$" : "$";
    const tex = formula.querySelector("annotation").textContent;
    formula.replaceWith(`${sign}${tex}${sign}`);
  }
  box.style.whiteSpace = "normal";
  document.body.append(box); // only a part of the page has lines
  event.clipboardData.setData("text/plain", box.innerText);
  event.clipboardData.setData("text/html", html);
  box.remove();
  event.preventDefault();
});
