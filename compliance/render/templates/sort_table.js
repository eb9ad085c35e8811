"use strict";
for (const table of document.querySelectorAll("table")) {
  table.tHead.addEventListener("click", (event) => {
    const head = event.target.closest("th");
    const descending = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const numeric = head.classList.contains("number");
    const compare = (a, b) => (numeric ? a - b : a.localeCompare(b, "en", { numeric: true }));
    const key = (row) => row.cells[head.cellIndex].dataset.value;
    const rows = [...table.tBodies[0].rows];
    // Empty cells stay last in both directions.
    rows.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      return descending ? compare(y, x) : compare(x, y);
    });
    table.tBodies[0].append(...rows);
  });
}
