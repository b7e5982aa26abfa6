// The search page: finds the sections that have all words of a query, in any form,
// and shows where. The index, with its synonyms and with the functions that split and
// stem words, is made by fbt_search.py. Nothing is fetched, so that it works on pages
// opened from a disk.
"use strict";

(() => {
  const [synonyms, sections] = fbtSections;
  const MOST = 60; // results
  const BEFORE = 90, AFTER = 170; // characters of an excerpt around a word
  const query = new URLSearchParams(location.search).get("q")?.trim() ?? "";
  const field = document.querySelector(".bd-search-container input[name=q]");
  const output = document.getElementById("search-results");
  field.value = query;
  document.title = query ? `${query} · ${document.title}` : document.title;
  field.focus();
  field.select();
  if (!query) return;

  const escape = (text) => text.replace(/[.*+\-?^${}()|[\]\\]/g, "\\$&");
  const stemmer = new Stemmer();
  const stem = (word) => stemmer.stemWord(word);
  // Chinese and Japanese have no spaces: each character is a word.
  const single = /^[\u3040-\u30ff\u3400-\u9fff]$/u;

  // All words of the book, by their stems.
  const forms = new Map();
  for (const word of new Set(
    sections.flatMap((entry) => splitQuery(`${entry[3]} ${entry[4]}`.toLowerCase()))
  )) {
    const root = stem(word);
    forms.set(root, [...(forms.get(root) ?? []), word]);
  }

  // An expression that finds a word or a phrase in all its forms.
  function pattern(text) {
    const words = splitQuery(text.toLowerCase()).map((word) => {
      const same = forms.get(stem(word)) ?? [];
      const longer = same.length || word.length < 3 ? [] // else the start of a word
        : [...forms.values()].flat().filter((one) => one.startsWith(word));
      const all = [...new Set([word, ...same, ...longer])];
      return `(?:${all.map(escape).join("|")})`;
    });
    if (words.every((word) => single.test(word.slice(3, -1)))) return words.join("");
    const phrase = words.join("[^\\p{L}\\p{N}]+");
    return `(?<![\\p{L}\\p{N}])${phrase}(?![\\p{L}\\p{N}])`;
  }

  const asked = splitQuery(query.toLowerCase());
  const wanted = asked.filter((word) => !stopwords.includes(word));
  const kept = wanted.length ? wanted : asked;
  const whole = new RegExp(pattern(query), "giu");
  const searches = kept.map((word) => ({
    exact: new RegExp(pattern(word), "giu"),
    any: new RegExp([word, ...(synonyms[word] ?? [])].map(pattern).join("|"), "giu"),
  }));
  const marks = new RegExp(
    [whole.source, ...searches.map(({ any }) => any.source)].join("|"), "giu");
  const count = (text, expression) => (text.match(expression) ?? []).length;

  function score([page, , title, heading, text]) {
    let sum = 0;
    for (const { exact, any } of searches) {
      const places = count(heading, any) * 8 + count(title, any) * 2
        + Math.min(count(text, any), 6);
      if (!places) return 0;
      sum += places + (count(`${heading} ${text}`, exact) ? 3 : 0);
    }
    if (kept.length > 1 && count(`${heading} ${text}`, whole)) sum += 12;
    return page.startsWith("book/") ? sum : sum / 3; // chapters before source
  }

  // Add a text to an element, with the words that were found marked.
  function addMarked(element, text) {
    let end = 0;
    for (const { 0: word, index } of text.matchAll(marks)) {
      element.append(text.slice(end, index));
      element.appendChild(document.createElement("mark")).append(word);
      end = index + word.length;
    }
    element.append(text.slice(end));
  }

  function excerpt(text) {
    const places = [whole, marks].map((one) => text.search(one));
    const first = places.find((place) => place >= 0) ?? 0;
    const start = first < BEFORE ? 0 : text.indexOf(" ", first - BEFORE) + 1;
    const stop = text.length - first < AFTER ? text.length
      : Math.max(text.lastIndexOf(" ", first + AFTER), first + 1);
    return `${start ? "… " : ""}${text.slice(start, stop)}${
      stop < text.length ? " …" : ""}`;
  }

  const found = sections.map((entry) => [score(entry), entry])
    .filter(([points]) => points > 0)
    .sort(([one], [other]) => other - one);
  const status = output.appendChild(document.createElement("p"));
  status.className = "search-summary";
  status.setAttribute("role", "status");
  status.textContent = found.length === 0
    ? `No section has ${kept.length > 1 ? "all of these words" : "this word"}.`
    : `${found.length} section${found.length > 1 ? "s" : ""}${
      found.length > MOST ? `, the best ${MOST} of them` : ""}`;
  const list = output.appendChild(document.createElement("ul"));
  list.className = "search";
  for (const [, [page, anchor, title, heading, text]] of found.slice(0, MOST)) {
    const item = list.appendChild(document.createElement("li"));
    const link = item.appendChild(document.createElement("a"));
    const words = [...new Set(`${heading} ${text}`.toLowerCase().match(marks))];
    link.href = `${page}.html?found=${encodeURIComponent(words.join("|"))}#${anchor}`;
    addMarked(link, heading);
    if (heading !== title) {
      item.append(" ");
      const where = item.appendChild(document.createElement("span"));
      where.className = "fbt-where";
      where.textContent = title;
    }
    const about = item.appendChild(document.createElement("p"));
    about.className = "context";
    addMarked(about, excerpt(text));
  }
})();
