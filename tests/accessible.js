// What axe, which must be loaded, has against the page: by all of its rules, or only by those that are named.
// The page is not the same afterwards.
async (only) => {
  // A page has thousands of texts in a few dozen looks. axe measures the contrast of one text of each look.
  const behind = new Map([[null, ""]]); // what is painted behind an element, as text
  const seen = new Set();
  for (const element of document.querySelectorAll("*")) {
    const style = getComputedStyle(element);
    const painted = [style.backgroundColor, style.backgroundImage, style.opacity].join();
    const below = behind.get(element.parentElement) + (painted === "rgba(0, 0, 0, 0),none,1" ? "" : painted);
    behind.set(element, below);
    const written = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
    if (!written || !element.checkVisibility({ visibilityProperty: true })) continue;
    const look = [below, style.color, style.fontSize, style.fontWeight, style.textShadow].join();
    element.toggleAttribute("data-alike", seen.has(look));
    seen.add(look);
  }
  axe.configure({ rules: [{ id: "color-contrast", selector: "*:not([data-alike])" }] });

  // Most of a page is of no concern to axe and costs it seconds: the parts of drawings and formulas, and the words
  // of code that look like others.
  document.querySelectorAll("mjx-container > *, svg[role=img]").forEach((drawing) => drawing.replaceChildren());
  document.querySelectorAll("pre span[data-alike]:not([id])").forEach((word) => word.replaceWith(...word.childNodes));

  // focus-order-semantics, an experiment, objects to what scrollable-region-focusable demands.
  const experiments = axe.getRules(["experimental"]).map((rule) => [rule.ruleId, { enabled: true }]);
  const rules = { ...Object.fromEntries(experiments), "focus-order-semantics": { enabled: false } };
  const options = { resultTypes: ["violations"], preload: false, ...(only ? { runOnly: only } : { rules }) };
  const { violations } = await axe.run(document, options);
  return violations.flatMap(({ id, nodes }) => nodes.map((node) => `${id}: ${node.html.slice(0, 200)}`));
}
