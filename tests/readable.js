// What a reader could not make out on the page as it is shown: pairs of what it is and how it falls short.
() => {
  const found = [];
  const LINE = 3; // WCAG 2: the least contrast of lines, and of text
  const TEXT = 4.5;
  const SMALLEST = 9; // CSS pixels; an index may be smaller than the letter it stands at

  function colour(text) {
    const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number);
    return text.startsWith("color(srgb") ? [255 * r, 255 * g, 255 * b, a] : [r, g, b, a];
  }

  function over([r, g, b, a], below) {
    return [r, g, b].map((value, i) => a * value + (1 - a) * below[i]);
  }

  function luminance(rgb) {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }

  function contrast(one, other) {
    const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
  }

  // The colour of the page behind an element: what its ancestors paint, from the outermost to the nearest.
  function behind(element) {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
      const [r, g, b, a] = colour(getComputedStyle(at).backgroundColor);
      layers.unshift([r, g, b, a]);
    }
    return layers.reduce((below, layer) => over(layer, below), [255, 255, 255]);
  }

  function opacity(element, root) {
    let product = 1;
    for (let at = element; at && at !== root.parentElement; at = at.parentElement) product *= getComputedStyle(at).opacity;
    return product;
  }

  // The colour with which an element paints its fill or stroke, or null where it paints none.
  function paint(element, kind, root) {
    const style = getComputedStyle(element);
    if (!/^(rgb|color)/.test(style[kind]) || style.visibility === "hidden") return null;
    if (kind === "stroke" && !parseFloat(style.strokeWidth)) return null;
    const [r, g, b, a] = colour(style[kind]);
    const alpha = a * style[`${kind}Opacity`] * opacity(element, root);
    return alpha > 0.02 ? [r, g, b, alpha] : null;
  }

  function shows(element) {
    return element.getClientRects().length && !element.closest("defs, clipPath, marker, pattern");
  }

  // A drawing's background where one of its texts lies: the page, and the shapes painted there before the text.
  function under(text, shapes, root) {
    const box = text.getBoundingClientRect();
    const middle = new DOMPoint(box.x + box.width / 2, box.y + box.height / 2);
    return shapes
      .filter((shape) => shape.compareDocumentPosition(text) & Node.DOCUMENT_POSITION_FOLLOWING)
      .filter((shape) => shape.isPointInFill(middle.matrixTransform(shape.getScreenCTM().inverse())))
      .map((shape) => paint(shape, "fill", root))
      .filter(Boolean)
      .reduce((below, fill) => over(fill, below), behind(root));
  }

  function report(what, kind, ratio, least) {
    if (ratio < least) found.push(`${what}: ${kind} ${ratio.toFixed(2)} instead of ${least}`);
  }

  for (const root of document.querySelectorAll("article .fbt-figure > svg, article .fbt-view svg")) {
    if (!shows(root)) continue;
    const name = root.closest("figure")?.id || root.parentElement.className;
    const shapes = [...root.querySelectorAll("path, rect, circle, ellipse, polygon")].filter(shows);
    for (const text of [...root.querySelectorAll("text")].filter((t) => t.textContent.trim() && shows(t))) {
      const background = under(text, shapes, root);
      const parts = [text, ...text.querySelectorAll("tspan")];
      const scale = Math.hypot(text.getScreenCTM().a, text.getScreenCTM().b);
      report(name, `text “${text.textContent}” px`, scale * Math.max(...parts.map((p) => parseFloat(getComputedStyle(p).fontSize))), SMALLEST);
      const fill = paint(text, "fill", root);
      report(name, `text “${text.textContent}”`, contrast(over(fill, background), background), TEXT);
    }
    const page = behind(root);
    for (const line of [...root.querySelectorAll("path, line, polyline, rect, use")].filter(shows)) {
      const stroke = paint(line, "stroke", root);
      if (stroke) report(name, `${line.tagName} ${line.closest("[id]").id} ${getComputedStyle(line).stroke}`, contrast(over(stroke, page), page), LINE);
    }
  }
  return [...new Set(found)];
}
