// Sorting, filtering and paging of the table of studies. Text of the page is read and moved, never made into markup.
"use strict";
(() => {
  const table = document.getElementById("triage");
  if (!table) return;
  const PAGE = 50;
  const body = table.tBodies[0];
  const get = (id) => document.getElementById(id);
  const [text, status, severity, condition, warning] =
    ["text", "status", "severity", "condition", "warning"].map(get);
  const shown = get("shown"), pager = get("pager"), more = get("more"), all = get("all");
  const STATUSES = ["graded", "prior", "failed"];
  const number = (count) => count.toLocaleString("en");
  const times = (string, mark) => string.split(mark).length - 1;

  let studies = Array.from(body.rows, (row, rank) => {
    const { s, g, c, w } = row.dataset;
    const warnings = w ? w.split(" ") : [];
    return {
      row, rank, warnings, status: s, digits: g, text: null,
      keys: {
        rank: -rank,
        status: -STATUSES.indexOf(s),
        grades: times(g, "2") * 100 + times(g, "1") - (g.startsWith("-") && !/\d/.test(g) ? 1 : 0),
        confidence: c === undefined ? -1 : Number(c),
        warnings: warnings.length,
      },
    };
  });
  const part = document.createElement("span"), total = document.createElement("span");
  part.className = "screen";  // in print all that match are there
  shown.replaceChildren(part, total);
  let limit = PAGE;

  const haystack = (study) => {
    study.text ??= (study.row.textContent + " " + study.warnings.join(" ")).toLowerCase();
    return study.text;
  };

  const graded = (digits, least, column) => {
    for (let i = column === "" ? 0 : Number(column); i < digits.length; i += column === "" ? 1 : 5) {
      if (least === "-" ? digits[i] === "-" : digits[i] >= least && digits[i] !== "-") return true;
    }
    return false;
  };

  const matches = (study, wanted) =>
    (!status.value || study.status === status.value) &&
    (!warning.value || study.warnings.includes(warning.value)) &&
    ((!severity.value && !condition.value) || graded(study.digits, severity.value || "0", condition.value)) &&
    wanted.every((word) => haystack(study).includes(word));

  const filter = () => {
    const wanted = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    for (const study of studies) {
      const hit = matches(study, wanted);
      study.row.hidden = !hit;
      study.row.classList.toggle("later", hit && found >= limit);
      found += hit;
    }
    const visible = Math.min(found, limit);
    part.textContent = visible < found ? `The first ${number(visible)} of ` : "";
    total.textContent =
      (found < studies.length ? `${number(found)} that match, of ${number(studies.length)} studies`
        : `${number(found)} ${found === 1 ? "study" : "studies"}`);
    pager.hidden = visible === found;
    more.textContent = `Show ${number(Math.min(PAGE, found - visible))} more`;
    all.textContent = `Show all ${number(found)}`;
  };

  const again = () => { limit = PAGE; filter(); };

  const sort = (header, key) => {
    const down = header.getAttribute("aria-sort") === "descending"
      || (!header.hasAttribute("aria-sort") && (key === "id" || key === "confidence"));
    for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", down ? "ascending" : "descending");
    const way = down ? 1 : -1;
    const compare = key === "id"
      ? (a, b) => a.name < b.name ? -1 : a.name > b.name ? 1 : 0
      : (a, b) => a.keys[key] - b.keys[key];
    if (key === "id") for (const study of studies) study.name ??= study.row.cells[0].textContent.trim();
    studies.sort((a, b) => way * compare(a, b) || a.rank - b.rank);
    body.replaceChildren(...studies.map((study) => study.row));
    again();
  };

  for (const button of table.tHead.querySelectorAll("button")) {
    button.addEventListener("click", () => sort(button.closest("th"), button.dataset.key));
  }
  for (const select of [status, severity, condition, warning]) select.addEventListener("change", again);
  text.addEventListener("input", again);
  get("clear").addEventListener("click", () => {
    for (const field of [text, status, severity, condition, warning]) field.value = "";
    again();
    text.focus();
  });
  more.addEventListener("click", () => { limit += PAGE; filter(); });
  all.addEventListener("click", () => { limit = Infinity; filter(); });
  get("filters").hidden = false;
  table.classList.add("ready");
  filter();
})();
