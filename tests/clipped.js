// Return the lines of code and of outputs that are wider than their box, also where
// they are folded. Lines in a box that scrolls, with a shade where it goes on, do not
// count if `hinted` is set.
(hinted) => {
  const folded = [...document.querySelectorAll("article details:not([open])")];
  folded.forEach((fold) => { fold.open = true; });
  const lines = [];
  for (const pre of document.querySelectorAll("article pre")) {
    const box = pre.parentElement.scrollWidth > pre.parentElement.clientWidth
      && pre.scrollWidth <= pre.clientWidth ? pre.parentElement : pre;
    if (!pre.checkVisibility() || box.scrollWidth <= box.clientWidth) continue;
    const { backgroundAttachment, overflowX } = getComputedStyle(box);
    const scrolls = ["auto", "scroll"].includes(overflowX);
    if (hinted && scrolls && backgroundAttachment.includes("local")) continue;
    const rows = pre.textContent.split("\n");
    lines.push(rows.reduce((a, b) => (b.length > a.length ? b : a)));
  }
  folded.forEach((fold) => { fold.open = false; });
  return lines;
}
