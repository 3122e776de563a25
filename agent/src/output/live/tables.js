// A table whose rows are replaced again and again: `liveTable(section, columns, none)`.
//
// A column is `{ title, number, hint, value(row), text(row) | cell(row) }`; `value` is what is
// sorted by. `first` is the column that is sorted by from the start. The function that is returned
// takes `{ rows, all }`; the order chosen by clicks stays.
function liveTable(section, columns, none) {
  const heads = columns.map(({ title, number, hint, first }) => {
    const head = make('th', { className: number ? 'number' : '', title: hint || '' }, title);
    if (first) head.setAttribute('aria-sort', 'descending');
    return head;
  });
  const body = make('tbody', {});
  const table = make('table', { className: 'sortable' }, make('thead', {}, make('tr', {}, ...heads)), body);
  const empty = make('p', { className: 'none' }, none);
  const more = make('p', { className: 'none' });
  const scroll = make('div', { className: 'table' }, table);
  section.append(scroll, empty, more);
  const refresh = sortable(table);

  return ({ rows, all }) => {
    const made = rows.map((row) => {
      const cells = columns.map((column) => {
        const content = column.cell ? column.cell(row) : [column.text ? column.text(row) : String(column.value(row) ?? '–')];
        const cell = make('td', { className: column.number ? 'number' : 'name' }, ...content);
        // What is not known sorts last.
        cell.dataset.sortValue = column.value(row) ?? (column.number ? -1 : '');
        return cell;
      });
      return make('tr', { className: row.benign ? 'benign' : '' }, ...cells);
    });
    body.replaceChildren(...made);
    scroll.hidden = rows.length === 0;
    empty.hidden = rows.length > 0;
    more.hidden = all <= rows.length;
    more.textContent = `${all - rows.length} more are not listed`;
    refresh();
  };
}

const count = (number) => number.toLocaleString('en-US');

// Microseconds in the unit that reads best.
function time(micros) {
  if (micros === null || micros === undefined) return '–';
  if (micros < 1000) return `${micros.toFixed(micros < 100 ? 1 : 0)} µs`;
  if (micros < 1e6) return `${(micros / 1000).toFixed(micros < 1e5 ? 2 : 0)} ms`;
  return `${(micros / 1e6).toFixed(2)} s`;
}

function bytes(number) {
  if (number < 1000) return `${number} B`;
  const units = ['kB', 'MB', 'GB', 'TB', 'PB'];
  let unit = -1;
  for (; number >= 1000 && unit < units.length - 1; unit++) number /= 1000;
  return `${number.toFixed(number < 10 ? 1 : 0)} ${units[unit]}`;
}

function rate(perSecond) {
  if (perSecond >= 1e6) return `${(perSecond / 1e6).toFixed(2)} M`;
  if (perSecond >= 1e4) return `${(perSecond / 1e3).toFixed(1)} k`;
  return perSecond >= 100 || Number.isInteger(perSecond) ? count(Math.round(perSecond)) : perSecond.toFixed(1);
}
