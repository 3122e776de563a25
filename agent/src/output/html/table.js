// Makes tables sortable: `sortable(table)`, done for each table of the class `sortable`.
//
// Each cell of the head becomes a button; a click or Enter sorts by its column, another one
// turns the order. A cell is compared by its `data-sort-value`, else by its text; a column of
// numbers only is sorted as numbers, largest first. A head with `data-unsortable` stays as it is.
// Returns `refresh()`, which sorts again after the rows were replaced.
function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  let column = heads.findIndex((head) => head.hasAttribute('aria-sort'));
  let descending = column >= 0 && heads[column].getAttribute('aria-sort') === 'descending';

  const valueOf = (row, index) => {
    const cell = row.cells[index];
    return cell ? cell.dataset.sortValue ?? cell.textContent.trim() : '';
  };
  const isNumber = (text) => text !== '' && Number.isFinite(Number(text));

  function refresh() {
    if (column < 0) return;
    heads.forEach((head, index) => {
      if (index === column) head.setAttribute('aria-sort', descending ? 'descending' : 'ascending');
      else head.removeAttribute('aria-sort');
    });
    for (const body of table.tBodies) {
      const rows = [...body.rows].map((row) => ({ row, value: valueOf(row, column) }));
      const numbers = rows.every(({ value }) => isNumber(value));
      const order = numbers ? (a, b) => a.value - b.value : (a, b) => a.value.localeCompare(b.value, 'en', { numeric: true });
      rows.sort((a, b) => (descending ? order(b, a) : order(a, b)));
      body.append(...rows.map(({ row }) => row));
    }
  }

  function sort(index) {
    const rows = [...table.tBodies].flatMap((body) => [...body.rows]);
    const numbers = rows.length > 0 && rows.every((row) => isNumber(valueOf(row, index)));
    descending = index === column ? !descending : numbers;
    column = index;
    refresh();
  }

  heads.forEach((head, index) => {
    if (head.hasAttribute('data-unsortable')) return;
    const button = make('button', { type: 'button' }, ...head.childNodes);
    button.addEventListener('click', () => sort(index));
    head.replaceChildren(button);
  });
  return refresh;
}

document.querySelectorAll('table.sortable').forEach(sortable);
