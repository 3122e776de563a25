// The live page: asks for the last seconds once a second, and shows them.
const start = embedded('start');
const byId = (id) => document.getElementById(id);
const SECOND = 1000;
const HISTORY = 60;
const live = { window: start.window, paused: false, timer: 0, asked: 0, last: null, graph: null };

// ---- the tables

const quantile = (name) => (row) => row.latency_us?.[name];
const latency = (name) => ({
  title: name,
  number: true,
  value: quantile(name),
  text: (row) => time(quantile(name)(row)),
});
const show = {
  remotes: liveTable(byId('remotes'), [
    { title: 'remote', value: (row) => row.remote },
    { title: 'role', value: (row) => row.role, hint: 'what the process is' },
    { title: 'requests/s', number: true, value: (row) => row.rate, text: (row) => rate(row.rate) },
    { title: 'errors', number: true, value: (row) => row.errors, text: (row) => count(row.errors), hint: 'resets and failed connects' },
    latency('p50'), { ...latency('p99'), first: true }, latency('max'),
    { title: 'connections', number: true, value: (row) => row.connections, text: (row) => count(row.connections) },
  ], 'No connection in this window.'),
  connections: liveTable(byId('connections'), [
    { title: 'local', value: (row) => row.local },
    { title: 'remote', value: (row) => row.remote },
    { title: 'role', value: (row) => row.role },
    { title: 'state', value: (row) => row.state },
    { title: 'requests/s', number: true, value: (row) => (row.overlapped ? null : row.rate), text: (row) => (row.overlapped ? 'overlapping' : rate(row.rate)) },
    latency('p50'), { ...latency('p99'), first: true }, latency('max'),
    { title: 'srtt', number: true, value: (row) => row.srtt_us, text: (row) => time(row.srtt_us), hint: 'smoothed round trip time' },
    { title: 'retransmits', number: true, value: (row) => row.retransmits, text: (row) => count(row.retransmits) },
    { title: 'sent', number: true, value: (row) => row.bytes_sent, text: (row) => bytes(row.bytes_sent) },
    { title: 'received', number: true, value: (row) => row.bytes_received, text: (row) => bytes(row.bytes_received) },
  ], 'No connection in this window.'),
  failures: liveTable(byId('failures'), [
    { title: 'calls/s', number: true, value: (row) => row.rate, text: (row) => rate(row.rate) },
    { title: 'count', number: true, first: true, value: (row) => (row.benign ? 0 : row.count), text: (row) => count(row.count) },
    { title: 'call', value: (row) => row.syscall },
    { title: 'error', value: (row) => row.errno },
    { title: 'on', value: (row) => row.args[0]?.[0] ?? '', cell: args },
    { title: 'to be expected', value: (row) => row.benign ?? '', text: (row) => row.benign ?? '' },
  ], 'No system call has failed in this window.'),
};

function args(row) {
  const lines = row.args.map(([value, times]) =>
    make('span', { className: 'arg' }, value, make('span', { className: 'count' }, ` ×${count(times)}`)));
  if (row.other_args > 0 && row.args.length > 0) lines.push(make('span', { className: 'arg count' }, `others ×${count(row.other_args)}`));
  return lines;
}

// ---- the tiles

const SVG = 'http://www.w3.org/2000/svg';

function tile(name, hint) {
  const value = make('div', { className: 'value' }, '–');
  const note = make('div', { className: 'note' });
  const element = make('div', { className: 'tile', title: hint }, make('div', { className: 'name' }, name), value, note);
  const svg = document.createElementNS(SVG, 'svg');
  svg.setAttribute('viewBox', `0 0 ${HISTORY - 1} 28`);
  svg.setAttribute('preserveAspectRatio', 'none');
  svg.setAttribute('aria-hidden', 'true');
  const area = document.createElementNS(SVG, 'polygon');
  const line = document.createElementNS(SVG, 'polyline');
  svg.append(area, line);
  element.append(svg);
  byId('tiles').append(element);
  const history = [];
  return {
    set(figure, unit, text, warn) {
      value.replaceChildren(figure, ' ', make('small', {}, unit));
      note.textContent = note.title = text;
      element.classList.toggle('warn', Boolean(warn));
    },
    add(point) {
      history.push(point);
      if (history.length > HISTORY) history.shift();
      const most = Math.max(...history) || 1;
      const points = history.map((each, i) => `${HISTORY - history.length + i},${(27 - (26 * each) / most).toFixed(2)}`);
      line.setAttribute('points', points.join(' '));
      area.setAttribute('points', `${HISTORY - history.length},28 ${points.join(' ')} ${HISTORY - 1},28`);
    },
  };
}

const tiles = {
  cpu: tile('CPU of the target', 'samples of the target; as CPUs where the clock tells it'),
  requests: tile('Requests', 'requests of all connections, per second'),
  errors: tile('TCP errors', 'resets and failed connects in the window'),
  failures: tile('Failing calls', 'system calls that failed and should not, per second'),
  agent: tile('The agent itself', 'its CPU time in the last second, its resident memory'),
};

function showTiles(data) {
  const { totals, frequency, remotes, failures, lost } = data;
  // Samples by hardware cycles tell no CPU time.
  const perSecond = data.samples / data.window_s || 0;
  const [busy, unit] = frequency ? [(perSecond / frequency).toFixed(2), 'CPUs'] : [rate(perSecond), 'samples per s'];
  const complete = data.complete === null ? '' : `, ${data.complete.toFixed(1)} % complete`;
  tiles.cpu.set(busy, unit, `${count(data.samples)} samples${complete}`);
  const slowest = remotes.rows.reduce((worst, row) => ((row.latency_us?.p99 ?? -1) > (worst?.latency_us?.p99 ?? -1) ? row : worst), null);
  const p99 = slowest?.latency_us ? `slowest p99 ${time(slowest.latency_us.p99)} (${slowest.remote})` : 'none timed';
  tiles.requests.set(rate(data.rate), 'per s', p99);
  const errors = remotes.rows.reduce((sum, row) => sum + row.errors, 0);
  const failed = data.failed[0] ? `${data.failed[0].error} at ${data.failed[0].remote} ×${count(data.failed[0].count)} since the start` : 'no connect has failed';
  tiles.errors.set(count(errors), 'in the window', failed, errors > 0);
  const bad = failures.rows.filter((row) => !row.benign);
  const worst = bad[0] ? `${bad[0].syscall} ${bad[0].errno}` : 'none that should not fail';
  tiles.failures.set(rate(bad.reduce((sum, row) => sum + row.rate, 0)), 'per s', worst, bad.length > 0);
  const losses = Object.entries(lost);
  const lostText = losses.length ? `lost: ${losses.map(([cause, times]) => `${cause} ${count(times)}`).join(', ')}` : 'nothing lost';
  tiles.agent.set(`${(100 * data.agent_cpu).toFixed(1)} %`, `CPU, ${bytes(data.agent_bytes)}`, lostText, losses.length > 0);
  const before = live.last;
  const seconds = before && data.elapsed_s - before.elapsed_s;
  if (seconds > 0.1) {
    const growth = (key) => (totals[key] - before.totals[key]) / seconds;
    tiles.cpu.add(growth('samples') / (frequency || 1));
    tiles.requests.add(growth('requests'));
    tiles.failures.add(growth('failures'));
    tiles.errors.add(errors);
    tiles.agent.add(data.agent_cpu);
  }
}

// ---- looking

function status(kind, text) {
  const element = byId('status');
  if (element.className !== kind) element.className = kind;
  const target = element.querySelector('.text');
  if (target.textContent !== text) target.textContent = text;
}

function showAll(data) {
  if (live.graph) live.graph.update(data.flame);
  else live.graph = flame(byId('flame'), data.flame, { height: 420 });
  showTiles(data);
  show.remotes(data.remotes);
  show.connections(data.connections);
  show.failures(data.failures);
  const naming = data.pending_names > 0 ? `; ${count(data.pending_names)} addresses are being named` : '';
  const processes = data.processes > 1 ? `, ${count(data.processes)} processes` : '';
  byId('window').textContent = `the last ${data.window_s.toFixed(0)} s of ${data.elapsed_s.toFixed(0)} s${processes}${naming}`;
  live.last = data;
}

async function look() {
  clearTimeout(live.timer);
  const asked = ++live.asked;
  const current = () => asked === live.asked && !live.paused;
  let wait = SECOND;
  try {
    const answer = await fetch(`live.json?window=${live.window}`, { signal: AbortSignal.timeout(10 * SECOND) });
    if (!answer.ok) throw new Error(await answer.text());
    const data = await answer.json();
    if (!current()) return;
    showAll(data);
    if (data.ended) status('ended', 'the target has ended: this is its last window');
    else status('live', data.guard.at(-1) ?? 'live');
  } catch (error) {
    if (!current()) return;
    status('lost', `connection to the agent lost: ${error.message.trim()}`);
    wait = 2 * SECOND;
  }
  live.timer = setTimeout(look, wait);
}

function pause() {
  live.paused = !live.paused;
  byId('pause').textContent = live.paused ? 'Go on' : 'Pause';
  if (live.paused) {
    clearTimeout(live.timer);
    status('paused', `paused at ${new Date().toLocaleTimeString()}`);
  } else look();
}

byId('pause').addEventListener('click', pause);
document.addEventListener('keydown', (event) => {
  if (event.key !== ' ' || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest('input, select, button, textarea, a, summary')) return;
  event.preventDefault();
  pause();
});
for (const seconds of start.windows) {
  const button = make('button', { type: 'button' }, `${seconds} s`);
  const press = () => {
    for (const other of byId('windows').children) other.setAttribute('aria-pressed', String(other === button));
    byId('bundle').href = `bundle.zip?window=${seconds}`;
    live.window = seconds;
  };
  button.addEventListener('click', () => {
    press();
    if (!live.paused) look();
  });
  byId('windows').append(button);
  if (seconds === start.window) press();
}
// The token need not stay in the address: the cookie has it.
if (location.search) history.replaceState(null, '', location.pathname);
look();
