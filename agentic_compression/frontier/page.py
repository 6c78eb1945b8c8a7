"""The parts of the self-contained page: style, script, facts and the table of episodes. All text is escaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from agentic_compression.frontier.document import measure_command, rebuild_command
from agentic_compression.frontier.figures import AxisUnit, axis_units
from agentic_compression.frontier.objectives import one_per_episode

if TYPE_CHECKING:
    from agentic_compression.records import EpisodeRecord, FrontierDocument, Solution

__all__ = ["POLICY", "SCRIPT", "STYLE", "episode_table", "study_facts"]

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; worker-src blob:"
)
"""The browser itself refuses every outside request. Plotly's WebGL charts compile code, hence ``unsafe-eval``."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5f6672; --paper: #f6f7f9; --card: #ffffff; --rule: #e3e6ea;
  --accent: #0072b2; --good: #00734f; --bad: #b04a00; --code: #f0f2f5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #a2a9b4; --paper: #131519; --card: #1c1f25;
  --rule: #2f343d; --accent: #6cb8e8; --good: #4fd0a3; --bad: #f0955a; --code: #262b33; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 36px 24px 72px; }
header p { margin: 0; color: var(--soft); }
h1 { margin: 0 0 4px; font-size: 30px; line-height: 1.2; letter-spacing: -.015em; overflow-wrap: anywhere; }
h2 { margin: 0 0 2px; font-size: 18px; }
h2 + p { margin: 0 0 10px; color: var(--soft); max-width: 78ch; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px; margin: 24px 0; }
dl > div, section { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; }
dl > div { padding: 12px 16px; }
dt { color: var(--soft); font-size: 13px; }
dd { margin: 0; font-size: 20px; font-weight: 600; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
dd small { display: block; font-size: 13px; font-weight: 400; color: var(--soft); }
section { padding: 20px 22px; margin: 16px 0; }
.scroll { overflow-x: auto; margin: 0 -22px -20px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th, td { padding: 9px 12px; text-align: left; vertical-align: top; border-top: 1px solid var(--rule); }
th { color: var(--soft); font-weight: 500; white-space: nowrap; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td small { display: block; color: var(--soft); }
td.text { min-width: 210px; max-width: 340px; overflow-wrap: anywhere; }
tr.member td:first-child { box-shadow: inset 3px 0 0 #d4a017; }
.status { font-weight: 600; color: var(--bad); white-space: nowrap; } .status.succeeded { color: var(--good); }
.tag { display: inline-block; border: 1px solid currentColor; border-radius: 99px; padding: 0 8px; font-size: 12px;
  color: var(--accent); margin: 2px 4px 0 0; white-space: nowrap; }
code { font: 12.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.command { display: flex; gap: 8px; align-items: flex-start; background: var(--code); border-radius: 7px;
  padding: 4px 6px 4px 9px; margin: 0 0 4px; min-width: 230px; }
.command code { flex: 1; }
button { font: inherit; font-size: 12px; color: var(--accent); background: none; border: 1px solid var(--rule);
  border-radius: 6px; padding: 0 8px; cursor: pointer; } button:hover { border-color: currentColor; }
footer { color: var(--soft); font-size: 13px; margin-top: 20px; }
"""

SCRIPT = """
const dark = window.matchMedia('(prefers-color-scheme: dark)');
function paint() {
  const colour = dark.matches ? '#c9ced6' : '#3f4650';
  document.querySelectorAll('.plotly-graph-div').forEach(div => {
    Plotly.relayout(div, {'font.color': colour});
    const baseline = (div.data || []).findIndex(trace => trace.name === 'baseline');
    if (baseline >= 0) Plotly.restyle(div, {'marker.color': dark.matches ? '#f3f4f6' : '#1c1e21'}, [baseline]);
  });
}
dark.addEventListener('change', paint);
paint();
document.addEventListener('click', async event => {
  const button = event.target.closest('button[data-copy]');
  if (!button) return;
  try { await navigator.clipboard.writeText(button.dataset.copy); }
  catch (refused) {
    const area = document.createElement('textarea');
    area.value = button.dataset.copy;
    document.body.append(area); area.select(); document.execCommand('copy'); area.remove();
  }
  button.textContent = 'copied';
  setTimeout(() => { button.textContent = 'copy'; }, 1500);
});
"""


def study_facts(document: FrontierDocument, records: Sequence[EpisodeRecord]) -> str:
    """The cards below the title: episodes, solutions, hypervolume, baseline, knee, machine."""
    ordered, units = one_per_episode(records), axis_units(records)
    counts = Counter(record.status for record in ordered)
    facts = [
        ("Episodes recorded", str(len(ordered)), ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))),
        ("On the frontier", str(len(document.solutions)), "not dominated beyond the noise"),
        ("Hypervolume", f"{document.hypervolume:.4f}", "0 = nothing, 1 = perfect at no cost"),
    ]
    size = units["model_size_gb"]
    if document.baseline is not None:
        shown = f"{document.baseline.model_size_gb * size.factor:.4g} {size.symbol}"
        facts.append(("Baseline", f"{document.baseline.accuracy:.3f}", f"accuracy at {shown}"))
    knee = next((solution for solution in document.solutions if solution.is_knee), None)
    if knee is not None:
        shown = f"{knee.objectives.model_size_gb * size.factor:.4g} {size.symbol}"
        where = f"episode {knee.episode}, accuracy at {shown}"
        facts.append(("Best compromise", f"{knee.objectives.accuracy:.3f}", where))
    machine = next((record.environment for record in ordered if record.environment is not None), None)
    if machine is not None:
        facts.append(("Measured on", machine.device, machine.cpu))
    cards = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for name, value, note in facts
    )
    return f"<dl>{''.join(cards)}</dl>"


def episode_table(document: FrontierDocument, records: Sequence[EpisodeRecord]) -> str:
    """One row for each recorded episode: what was tried, what came of it, why, and the commands to get it back."""
    units = axis_units(records)
    solutions = {solution.episode: solution for solution in document.solutions}
    heads = ["Episode", "Status", "Strategy", *(unit.label for unit in units.values()), "Why", "Commands"]
    rows = (_row(document.study, record, solutions.get(record.episode), units) for record in one_per_episode(records))
    head = "".join(f"<th>{escape(title)}</th>" for title in heads)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _row(study: str, record: EpisodeRecord, solution: Solution | None, units: dict[str, AxisUnit]) -> str:
    tags = []
    if solution is not None:
        tags = ["frontier", *(["best compromise"] if solution.is_knee else [])]
        tags += [] if solution.meets_constraints else ["misses a constraint"]
    cells = [
        f'<td class="number">{record.episode}</td>',
        f'<td><span class="status {escape(record.status)}">{escape(record.status)}</span><br>'
        + "".join(f'<span class="tag">{escape(tag)}</span>' for tag in tags)
        + "</td>",
        f'<td class="text"><code>{escape(record.strategy.label)}</code></td>',
        *(_number(record, unit) for unit in units.values()),
        f'<td class="text">{escape(record.error or record.rationale)}</td>',
        f"<td>{_commands(study, record)}</td>",
    ]
    opening = '<tr class="member">' if solution is not None else "<tr>"
    return f"{opening}{''.join(cells)}</tr>"


def _number(record: EpisodeRecord, unit: AxisUnit) -> str:
    if record.objectives is None:
        return '<td class="number">–</td>'
    value = float(getattr(record.objectives, unit.name)) * unit.factor
    interval = record.intervals.get(unit.name)
    if interval is None:
        return f'<td class="number">{value:.4g}</td>'
    low, high = (bound * unit.factor for bound in interval)
    spread = "exact" if low == high else f"{low:.4g} … {high:.4g}"
    return f'<td class="number">{value:.4g}<small>{spread}</small></td>'


def _commands(study: str, record: EpisodeRecord) -> str:
    commands = [rebuild_command(study, record.episode)]
    if record.checkpoint is not None:
        commands.append(measure_command(record.checkpoint.path))
    return "".join(
        f'<div class="command"><code>{escape(command)}</code>'
        f'<button type="button" data-copy="{escape(command, quote=True)}">copy</button></div>'
        for command in commands
    )
