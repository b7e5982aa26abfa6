// Return the violations that axe, already loaded, finds in the page, by all of its
// rules or only the given ones. This modifies the page.
async (only) => {
  // A page has thousands of texts but only a few dozen styles, so let axe measure the
  // contrast of one text per style.
  const behind = new Map([[null, ""]]); // element -> description of its background
  const seen = new Set();
  for (const element of document.querySelectorAll("*")) {
    const style = getComputedStyle(element);
    const own = [style.backgroundColor, style.backgroundImage, style.opacity].join();
    const isTransparent = own === "rgba(0, 0, 0, 0),none,1";
    const background = behind.get(element.parentElement) + (isTransparent ? "" : own);
    behind.set(element, background);
    const hasText = [...element.childNodes].some((node) =>
      node.nodeType === Node.TEXT_NODE && node.data.trim());
    if (!hasText || !element.checkVisibility({ visibilityProperty: true })) continue;
    const { color, fontSize, fontWeight, textShadow } = style;
    const look = [background, color, fontSize, fontWeight, textShadow].join();
    element.toggleAttribute("data-alike", seen.has(look));
    seen.add(look);
  }
  const selector = "*:not([data-alike])";
  axe.configure({ rules: [{ id: "color-contrast", selector }] });

  // Remove parts that axe need not check, which would take seconds: the contents of
  // drawings and formulas, and tokens of code in a style seen before.
  document.querySelectorAll("math, svg[role=img]")
    .forEach((drawing) => drawing.replaceChildren());
  document.querySelectorAll("pre span[data-alike]:not([id], .fbt-row)")
    .forEach((token) => token.replaceWith(...token.childNodes));

  // focus-order-semantics, which is experimental, contradicts
  // scrollable-region-focusable.
  const experiments = axe.getRules(["experimental"])
    .map((rule) => [rule.ruleId, { enabled: true }]);
  const rules = {
    ...Object.fromEntries(experiments), "focus-order-semantics": { enabled: false },
  };
  const { violations } = await axe.run(document, {
    resultTypes: ["violations"],
    preload: false,
    ...(only ? { runOnly: only } : { rules }),
  });
  return violations.flatMap(({ id, nodes }) =>
    nodes.map((node) => `${id}: ${node.html.slice(0, 200)}`));
}
