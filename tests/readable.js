// Return messages about texts that are too small, and about texts and lines with too
// little contrast, in the figures of the page.
() => {
  const messages = [];
  const LINE = 3; // smallest contrast of lines and of text by WCAG 2
  const TEXT = 4.5;
  const SMALLEST = 9; // CSS pixels of the largest letters; indices may be smaller

  function colour(text) {
    const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number);
    const scale = text.startsWith("color(srgb") ? 255 : 1;
    return [scale * r, scale * g, scale * b, a];
  }

  // A colour painted over an opaque one.
  function over([r, g, b, a], below) {
    return [r, g, b].map((value, i) => a * value + (1 - a) * below[i]);
  }

  function luminance(rgb) {
    const [r, g, b] = rgb.map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }

  function contrast(one, other) {
    const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
  }

  // The colour behind an element: the backgrounds of all its ancestors.
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
    for (let at = element; at && at !== root.parentElement; at = at.parentElement) {
      product *= getComputedStyle(at).opacity;
    }
    return product;
  }

  // The colour of an element's fill or stroke, or null if it is not painted.
  function paint(element, kind, root) {
    const style = getComputedStyle(element);
    if (!/^(rgb|color)/.test(style[kind])) return null;
    if (style.visibility === "hidden") return null;
    if (kind === "stroke" && !parseFloat(style.strokeWidth)) return null;
    const [r, g, b, a] = colour(style[kind]);
    const alpha = a * style[`${kind}Opacity`] * opacity(element, root);
    return alpha > 0.02 ? [r, g, b, alpha] : null;
  }

  function isVisible(element) {
    return element.getClientRects().length
      && !element.closest("defs, clipPath, marker, pattern");
  }

  // The colour behind a text of a drawing: the page and the shapes painted before it.
  function under(text, shapes, root) {
    const box = text.getBoundingClientRect();
    const middle = new DOMPoint(box.x + box.width / 2, box.y + box.height / 2);
    return shapes
      .filter((shape) =>
        shape.compareDocumentPosition(text) & Node.DOCUMENT_POSITION_FOLLOWING)
      .filter((shape) => shape.isPointInFill(
        middle.matrixTransform(shape.getScreenCTM().inverse())))
      .map((shape) => paint(shape, "fill", root))
      .filter(Boolean)
      .reduce((below, fill) => over(fill, below), behind(root));
  }

  function all(root, selector) {
    return [...root.querySelectorAll(selector)].filter(isVisible);
  }

  function report(what, kind, ratio, least) {
    if (ratio < least) {
      messages.push(`${what}: ${kind} ${ratio.toFixed(2)} instead of ${least}`);
    }
  }

  const drawings = "article .fbt-figure > svg, article .fbt-view svg";
  for (const root of all(document, drawings)) {
    const name = root.closest("figure")?.id || root.parentElement.className;
    const shapes = all(root, "path, rect, circle, ellipse, polygon");
    for (const text of all(root, "text").filter((t) => t.textContent.trim())) {
      const label = `text “${text.textContent}”`;
      const sizes = [text, ...text.querySelectorAll("tspan")]
        .map((element) => parseFloat(getComputedStyle(element).fontSize));
      const scale = Math.hypot(text.getScreenCTM().a, text.getScreenCTM().b);
      report(name, `${label} px`, scale * Math.max(...sizes), SMALLEST);
      const background = under(text, shapes, root);
      const fill = paint(text, "fill", root);
      report(name, label, contrast(over(fill, background), background), TEXT);
    }
    const page = behind(root);
    for (const line of all(root, "path, line, polyline, rect, use")) {
      const stroke = paint(line, "stroke", root);
      if (!stroke) continue;
      const { id } = line.closest("[id]");
      const label = `${line.tagName} ${id} ${getComputedStyle(line).stroke}`;
      report(name, label, contrast(over(stroke, page), page), LINE);
    }
  }
  return [...new Set(messages)];
}
