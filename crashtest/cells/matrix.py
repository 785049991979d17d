"""The verdicts of one scenario: what the cells of its examples showed, by model and guarantee.

Guarantees: a guarantee is `held` only when at least one cell judged it and none broke it; what could not be judged is
`inconclusive` or `not reached`, with the reason. One violation is reported for each (guarantee, model, cause), at
its earliest crash state, with its count. What a kill leaves a power cut can leave too: such a violation is told under
`kill` and counts under every model. Main process only; the judging itself is `judge.py`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from crashtest.cells import mixture
from crashtest.cells.example import Example, order
from crashtest.cells.judge import Fault
from crashtest.cells.losses import Cause
from crashtest.cells.plan import Cell, cell_id, example_id, place
from crashtest.errors import quoted
from crashtest.scenario import GUARANTEES, REAL, SIGNALS, Scenario, strength
from crashtest.verdict import MOST, Boundary, GuaranteeVerdict, ModelResult, Nested, ScenarioResult, Violation

_HINTS = {
    "recovers": "recovery must cope with every state a crash can leave; make it handle this one",
    "atomic": "half an update is left after recovery: put one durable decision before the first visible change, and "
    "let recovery finish or undo by it; or make the change with a single rename",
    "durable": "the operation was acked before it could survive: send the ack after the last change that it needs",
    "ordered": "a later operation became visible before an earlier one was acked; complete each before the next",
    "idempotent": "recovery that runs twice must end in the same state: let each step check whether it is done",
    "live": "after recovery the next operation must succeed: look for stale locks, half-made files, a log in the way",
    "clean": "recovery must remove what a killed run leaves: name temp files so that they can be found, and delete",
    "visible": "a reader sees a mixture before recovery: publish everything by one rename",
    "check": "the scenario's own check failed",
}


# -- the result -------------------------------------------------------------------------------------------------------


def result(
    scenario: Scenario,
    examples: list[Example],
    seconds: float,
    unrun: int,
    harness_error: str = "",
    depth: int = 1,
    models: tuple[str, ...] = ("kill",),
) -> ScenarioResult:
    """The verdict over all examples of a scenario. unrun: planned cells that were never tried."""
    harness_error = harness_error or next((e.harness_error for e in examples if e.harness_error), "")
    reason = next((e.reason for e in examples if e.reason), "")
    violations = _violations(scenario, examples, models)
    shown = {model: {v.guarantee for v in violations if v.model in (model, "kill")} for model in models}
    for model in models:
        for example in examples:
            shown[model] |= example.losses[model].violated() if model in example.losses else set()
    untried = sum(f["skipped"] for e in examples for f in e.facts.values())
    if untried and not any(shown.values()):
        reason = reason or f"recovery timed out, so {untried} trees were not tried; give it more time with --timeout"
    walked = {model: _walked(examples, model, unrun, bool(reason)) for model in models}
    for model, found in walked.items():
        unfinished = unrun or (model != "kill" and any(_unfinished(e, model) for e in examples))
        unknown = bool(reason or harness_error)
        found.guarantees = _verdicts(scenario, examples, model, shown[model], unknown, bool(unfinished))
    made = ScenarioResult(
        name=scenario.name,
        verdict="held",
        as_expected=False,
        reason=reason,
        operations=max((len(e.states) - 1 for e in examples if e.states), default=0),
        sequences=sum(bool(e.cells or e.losses) for e in examples),
        seconds=round(seconds, 3),
        models=walked,
        boundaries=_boundaries(walked),
        nested=Nested(
            depth=depth,
            cells=sum(e.inner for e in examples),
            unique_states=sum(len(e.seen_inner - e.seen) for e in examples),
            closed=_closed(examples, depth) if "kill" in models else None,
        ),
        violations=violations,
        self_proofs=sum(e.self_proofs for e in examples),
        rebuilt=sum(e.rebuilt for e in examples),
        harness_error=harness_error,
    )
    _steps(made, scenario, examples)
    _notes(made, scenario, examples)
    _conclude(made, scenario, shown, any(e.reason and not e.prepared["fault"] for e in examples))
    return made


def _boundaries(walked: dict[str, ModelResult]) -> dict[str, Boundary]:
    """By guarantee that broke or held anywhere, the models from the strongest to the weakest. What real cuts did not
    show may be possible all the same, so they are not among them."""
    found: dict[str, Boundary] = {}
    for name in sorted(set(walked) - set(REAL), key=strength):
        for guarantee, verdict in walked[name].guarantees.items():
            if verdict in ("held", "violated"):
                boundary = found.setdefault(guarantee, Boundary())
                (boundary.held if verdict == "held" else boundary.violated).append(name)
    return found


def _walked(examples: list[Example], model: str, unrun: int, unknown: bool) -> ModelResult:
    """How much was tried under a model."""
    points = sum(e.plan.crash_points for e in examples)
    if model == "kill":
        made = ModelResult(
            crash_points=points,
            cells=sum(len(e.cells) for e in examples),
            kills=sum(cell.variant not in ("rebuilt", "computed") for e in examples for cell, _ in e.cells),
            trees=sum(len(e.facts) for e in examples),
            unique_states=sum(len(e.seen) for e in examples),
            skipped=sum(e.plan.skipped + e.unsent + sum(f["skipped"] for f in e.facts.values()) for e in examples)
            + unrun,
            signals=dict(Counter(cell.variant for e in examples for cell, _ in e.cells if cell.variant in SIGNALS)),
        )
        made.exhaustive = not made.skipped and not unknown
        return made
    walks = [e.losses[model] for e in examples if model in e.losses]
    made = ModelResult(
        crash_points=points,
        cells=sum(walk.states for walk in walks),
        trees=sum(len({tree for tree, _ in walk.seen}) for walk in walks),
        unique_states=sum(len(walk.seen) for walk in walks),
        nested=sum(walk.nested for walk in walks),
        nested_exhaustive=bool(walks) and all(walk.nested_complete for walk in walks),
        skipped=min(sum(walk.skipped + walk.untried for walk in walks), MOST),
    )
    done = bool(walks) and not any(_unfinished(example, model) for example in examples)
    made.exhaustive = not unknown and done and all(walk.exhaustive and not walk.untried for walk in walks)
    return made


def _unfinished(example: Example, model: str) -> bool:
    """Whether a walk was begun and did not come to its end, or never begun."""
    walk = example.losses.get(model)
    return not example.reason and (walk is None or walk.finished < max(walk.given, 1))


def unwalked(examples: list[Example], models: tuple[str, ...]) -> bool:
    """Whether some states that a power cut may leave were to be tried, and were not."""
    return any(_unfinished(example, model) for model in models if model != "kill" for example in examples)


def _closed(examples: list[Example], depth: int) -> int | None:
    """The depth at which no crash in recovery leaves a tree that was not recovered and killed already, if it is."""
    if depth < 2 or not examples:
        return None
    return depth if all(not e.frontier() for e in examples) else None


def _conclude(made: ScenarioResult, scenario: Scenario, shown: dict[str, set[str]], unknown: bool) -> None:
    """shown: the guarantees that broke, by model. unknown: some example could not be judged, whatever others showed."""
    verdicts = {verdict for model in made.models.values() for verdict in model.guarantees.values()}
    # a real file system shows one outcome of many: what is expected need not be seen there
    as_expected = {
        model: shown[model] <= scenario.expected(model) if model in REAL else shown[model] == scenario.expected(model)
        for model in shown
    }
    if any(shown.values()):
        made.verdict = "violated"
    elif made.reason or made.harness_error or "inconclusive" in verdicts:
        made.verdict = "inconclusive"
    elif "not reached" in verdicts:
        made.verdict = "not reached"
        names = {g: 0 for model in made.models.values() for g, v in model.guarantees.items() if v == "not reached"}
        made.reason = f"no cell judged: {', '.join(sorted(names))}"
    if unknown and any(shown.values()) and all(shown[model] <= scenario.expected(model) for model in shown):
        made.verdict = "inconclusive"  # what was caught was expected, but not all could be judged
    judged = made.verdict == "violated" or not made.reason
    made.as_expected = all(as_expected.values()) and judged and not unknown and not made.harness_error
    missing = [
        f"{guarantee}{f' under {model}' if len(shown) > 1 else ''}"
        for model, broken in shown.items()
        if model not in REAL
        for guarantee in sorted(scenario.expected(model) - broken)
    ]
    if missing and not made.reason:
        made.reason = f"expected to be violated, but was not: {', '.join(missing)}"


def _verdicts(
    scenario: Scenario, examples: list[Example], model: str, violated: set[str], unknown: bool, unrun: bool
) -> dict[str, GuaranteeVerdict]:
    verdicts: dict[str, GuaranteeVerdict] = {}
    for guarantee in GUARANTEES:
        if guarantee not in scenario.claimed():
            if guarantee != "check":
                verdicts[guarantee] = "not claimed"
        elif guarantee in violated:
            verdicts[guarantee] = "violated"
        elif unknown or unrun:
            verdicts[guarantee] = "inconclusive"
        elif any(_judged(example, model).get(guarantee) for example in examples):
            verdicts[guarantee] = "held"
        else:
            verdicts[guarantee] = "not reached"
    return verdicts


def _judged(example: Example, model: str) -> dict[str, int]:
    """How many states were judged on each guarantee."""
    if model == "kill":
        return example.judged
    return example.losses[model].judged if model in example.losses else {}


def _violations(scenario: Scenario, examples: list[Example], models: tuple[str, ...]) -> list[Violation]:
    found: dict[tuple[str, ...], Violation] = {}
    for example in examples:
        if example.prepared["fault"]:
            guarantee, wanted, observed = example.prepared["fault"]
            end = Cell(len(example.events), "", 0, "group", model=models[0])
            made = _violation(example, Fault(guarantee, wanted, observed), end, len(example.states) - 1)
            made.point, made.hint = "after the ack, in a run without a crash", example.prepared["problem"]
            found.setdefault((guarantee, "acked"), made)
        for fault, cell, facts in sorted(example.faults, key=order):
            _add(found, (fault.guarantee, example.cause(cell, facts)), example, fault, cell, facts)
        for model, losses in example.losses.items():
            for fault, cell, facts in losses.kept_all():
                if any(other.model == "kill" and other.guarantee == fault.guarantee for other in found.values()):
                    continue  # told as what a kill leaves
                where = "" if model in REAL else str(facts["where"])  # what was lost there is not known
                _add(found, (model, fault.guarantee, where), example, fault, cell, facts)
            for cause in losses.counted():
                _add_cause(found, example, cause)
    return sorted(found.values(), key=lambda v: (v.expected, GUARANTEES.index(v.guarantee), models.index(v.model)))


def _violation(example: Example, fault: Fault, cell: Cell, acked: int) -> Violation:
    scenario = example.scenario
    return Violation(
        id=cell_id(scenario.name, example_id(example.ops), cell, cell.model), guarantee=fault.guarantee,
        model=cell.model, expected=fault.guarantee in scenario.expected(cell.model), count=1, point="", where="",
        acked=acked, wanted=fault.wanted, observed=fault.observed, hint=_HINTS[fault.guarantee],
    )  # fmt: skip


def _add(
    found: dict[tuple[str, ...], Violation],
    key: tuple[str, ...],
    example: Example,
    fault: Fault,
    cell: Cell,
    facts: dict[str, Any],
) -> None:
    if key in found:
        found[key].count += 1
        return
    made = found[key] = _violation(example, fault, cell, facts["acks"])
    _describe_state(made, example, facts)
    made.point = place(example.events, cell, facts["before"], facts.get("then", ""))
    made.after, made.ended = facts.get("after", []), facts.get("ended", "")
    made.where = example.where(cell, facts) if cell.model == "kill" else str(facts["where"])


def _add_cause(found: dict[tuple[str, ...], Violation], example: Example, cause: Cause) -> None:
    key = (cause.cell.model, cause.fault.guarantee, str(bool(cause.cell.inner)), *sorted(cause.marks))
    if key in found:
        found[key].count += cause.number
        return
    found[key] = violation_of(example, cause)


def violation_of(example: Example, cause: Cause) -> Violation:
    """A reduced loss as it is reported."""
    made = _violation(example, cause.fault, cause.cell, cause.facts["acks"])
    made.count = cause.number
    _describe_state(made, example, cause.facts)
    made.point = place(example.events, cause.cell, cause.facts["before"], cause.facts.get("then", ""))
    story = cause.story
    made.where, made.lost, made.kept, made.barrier = story["where"], story["lost"], story["kept"], story["barrier"]
    made.without = story["without"]
    real = example.losses[cause.cell.model].real.get(cause.cell, {}) if cause.cell.model in example.losses else {}
    made.seen = [name for name in REAL if real.get(name) is True]
    made.not_seen = [name for name in REAL if real.get(name) is False]
    if made.barrier:
        made.hint = f"missing: {made.barrier}{f', {made.where}' if made.where else ''}"
    return made


def _describe_state(made: Violation, example: Example, facts: dict[str, Any]) -> None:
    """What a mixture is made of, and what was left beside it."""
    tree = example.facts.get(facts["tree"])
    if tree is None or tree["failure"]:
        return
    if made.guarantee == "atomic":
        made.mixed = mixture.parts(example.states, made.acked, tree["observed"])
    if made.guarantee != "clean":
        made.left = mixture.left(tree["names"], example.expected, made.acked, example.scenario.ignore)


def find(examples: list[Example], identity: str) -> tuple[Example, Cell | None]:
    """The example and cell that a violation's id names; no cell when the run without a crash showed it."""
    for example in examples:
        name = example_id(example.ops)
        cells = [cell for _, cell, _ in example.faults]
        for losses in example.losses.values():
            cells += [cause.cell for cause in losses.causes] + [cell for _, cell, _ in losses.kept_all()]
        for cell in cells:
            if cell_id(example.scenario.name, name, cell, cell.model) == identity:
                return example, cell._replace(variant="group") if cell.variant == "computed" else cell
    return next(e for e in examples if e.prepared["fault"]), None


def _steps(made: ScenarioResult, scenario: Scenario, examples: list[Example]) -> None:
    killed = {facts["step"] for example in examples for _, facts in example.cells if facts["step"]}
    killed.update(step for example in examples for tree in example.facts.values() for step in tree["steps"])
    made.steps_killed = sorted(killed)
    # power cuts strike between changes, not at steps: without kills none was to be reached
    made.steps_not_reached = sorted(set(scenario.steps) - killed) if "kill" in made.models else []


def _notes(made: ScenarioResult, scenario: Scenario, examples: list[Example]) -> None:
    notes: dict[str, None] = {}
    for example in examples:
        for note in example.prepared["notes"]:
            notes[quoted(note, 400)] = None
        changed = example.prepared["observe_changed"]
        changed = changed or next((f["observe_changed"] for f in example.facts.values() if f["observe_changed"]), [])
        if changed and scenario.do_recover is not None:
            notes[f"observe changes files ({quoted(changed[0])}); let recover do that, and observe only look"] = None
        if example.remembers:
            notes[f"every recovery ran in a process of its own, because it remembers ({example.remembers})"] = None
        if example.prepared["uncertain"]:
            notes[f"{example.prepared['uncertain']} calls of other threads could not be timed exactly"] = None
        again = sum(cell.variant == "rebuilt" and not example.is_store(cell) for cell, _ in example.cells)
        if again:
            notes[f"{again} crash points were not come to again when they were to be killed, so they were rebuilt"] = (
                None
            )
        for words in _of_signals(example):
            notes[words] = None
        strays: list[str] = next((facts["strays"] for _, facts in example.cells if facts["strays"]), [])
        if strays:
            notes[f"processes outlived the kill and were ended: {', '.join(map(quoted, strays[:3]))}"] = None
    made.notes = list(notes)


def _of_signals(example: Example) -> list[str]:
    """Signals that did not end the program, and those that were not sent."""
    notes = []
    late = [(cell, facts["outlasted"]) for cell, facts in example.cells if facts["outlasted"]]
    if late:
        (cell, names), of = late[0], sum(cell.variant in SIGNALS for cell, _ in example.cells)
        notes.append(
            f"in {len(late)} of {of} cells that sent a signal, something had not ended when its grace was over, and "
            f"was killed: {', '.join(map(quoted, names[:3]))} after SIG{cell.variant}; give it more time with --grace"
        )
    if example.unsent:
        notes.append(f"{example.unsent} crash points were not come to again when a signal was to be sent there")
    return notes
