"""Jobs of a batch whose inputs are outputs of others, of the same batch or not, while they wait in the staging table.

A line may name a later one, so what a line depends on is known when all lines are staged. Memory holds two numbers for
each edge, and only where a line names a later one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.orm import Session

from farm.domain import ids
from farm.domain.requests import LINE
from farm.domain.states import JobState
from farm.tasks import TASKS

MAX_SHOWN: Final = 8  #: jobs of a cycle that a message names

#: The edges: from a staged job to a staged one (``parent_seq``), or to one that was submitted before.
_COLLECT: Final = """
    CREATE TEMPORARY TABLE staged_edge ON COMMIT DROP AS
    SELECT child.seq, child.line, child.task, child.role, child.name, child.output, true AS waits,
        parent.seq AS parent_seq, parent.task AS parent_task, (parent.spec ->> 'num_outputs')::integer AS outputs,
        CASE WHEN starts_with(child.name, 'job_') THEN substr(child.name, 5)::uuid ELSE parent.id END AS parent_id
    FROM (
        SELECT staged.seq, staged.line, staged.task, role.key AS role, file.value ->> 'job' AS name,
            coalesce((file.value ->> 'output')::integer, 0) AS output
        FROM staged, jsonb_each(staged.spec -> 'inputs') AS role, jsonb_array_elements(role.value) AS file
        WHERE staged.spec -> 'inputs' <> '{}' AND file.value ->> 'job' IS NOT NULL
    ) AS child
    LEFT JOIN staged AS parent ON starts_with(child.name, %(line)s) AND parent.custom_id = substr(child.name, %(from)s)
"""
_UNKNOWN: Final = """
    SELECT seq, line, role, name, NULL FROM staged_edge WHERE parent_id IS NULL ORDER BY seq
"""
_NO_SUCH_OUTPUT: Final = """
    SELECT seq, line, role, name, outputs FROM staged_edge WHERE output >= outputs ORDER BY seq
"""
_WRONG_MEDIA: Final = """
    SELECT seq, line, edge.role, name, parent_task || ' ' || made.media
    FROM staged_edge AS edge
    JOIN unnest(%(tasks)s::text[], %(roles)s::text[], %(taken)s::text[]) AS taken (task, role, media)
        ON taken.task = edge.task AND taken.role = edge.role
    JOIN unnest(%(all)s::text[], %(made)s::text[]) AS made (task, media) ON made.task = parent_task
    WHERE taken.media <> made.media ORDER BY seq
"""
_FORWARD: Final = "SELECT EXISTS (SELECT FROM staged_edge WHERE parent_seq >= seq)"
_EDGES: Final = "SELECT seq, parent_seq FROM staged_edge WHERE parent_seq IS NOT NULL"
_NAMES: Final = "SELECT seq, line, custom_id FROM staged WHERE seq = ANY(%(seqs)s::integer[])"
_REFUSE: Final = """
    CREATE TEMPORARY TABLE refused ON COMMIT DROP AS
    WITH RECURSIVE bad AS (
        SELECT seq FROM unnest(%(seqs)s::integer[]) AS seq
        UNION SELECT edge.seq FROM bad JOIN staged_edge AS edge ON edge.parent_seq = bad.seq
    )
    SELECT seq FROM bad
"""
_FOLLOWING: Final = """
    SELECT DISTINCT ON (edge.seq) edge.seq, edge.line, edge.role, edge.name
    FROM staged_edge AS edge JOIN refused ON refused.seq = edge.parent_seq
    WHERE edge.seq <> ALL (%(seqs)s::integer[]) ORDER BY edge.seq
"""
# Read without locks: inserting a million jobs takes a minute, in which the parents must be able to end.
_ADMIT: Final = """
    UPDATE staged_edge SET waits = CASE WHEN job.state IN ('failed', 'canceled') THEN NULL
        ELSE job.state <> 'succeeded' END, outputs = -1
    FROM job WHERE job.id = staged_edge.parent_id AND parent_seq IS NULL AND job.tenant_id = %(tenant)s
        AND NOT EXISTS (SELECT FROM batch WHERE batch.id = job.batch_id AND batch.deleted_at IS NOT NULL)
"""
_NOT_ADMITTED: Final = """
    SELECT edge.line, edge.role, edge.name, job.state FROM staged_edge AS edge
    LEFT JOIN job ON job.id = edge.parent_id AND job.tenant_id = %(tenant)s
    WHERE parent_seq IS NULL AND (waits IS NULL OR outputs IS DISTINCT FROM -1) ORDER BY edge.seq LIMIT 20
"""
#: Where `Batches.insert_staged` finds what the new rows of jobs have of the edges.
JOINED: Final = """
    staged LEFT JOIN (
        SELECT seq, count(DISTINCT parent_id) FILTER (WHERE waits) AS waits,
            jsonb_object_agg(name, 'job_' || encode(uuid_send(parent_id), 'hex')) AS names
        FROM staged_edge GROUP BY seq
    ) AS up USING (seq) LEFT JOIN (
        SELECT parent_seq AS seq, count(DISTINCT seq) AS dependents FROM staged_edge
        WHERE parent_seq IS NOT NULL GROUP BY parent_seq
    ) AS down USING (seq)
"""
#: The spec of a row of `JOINED`: with the ids of jobs where lines were named.
SPEC: Final = """
    CASE WHEN up.names IS NULL THEN spec ELSE jsonb_set(spec, '{inputs}', (
        SELECT jsonb_object_agg(role.key, (
            SELECT jsonb_agg(
                CASE WHEN file.value ? 'job'
                THEN jsonb_set(file.value, '{job}', up.names -> (file.value ->> 'job')) ELSE file.value END
                ORDER BY place)
            FROM jsonb_array_elements(role.value) WITH ORDINALITY AS file (value, place)))
        FROM jsonb_each(spec -> 'inputs') AS role)) END
"""
_INSERT_EDGES: Final = """
    INSERT INTO job_dependency (parent_id, job_id, waits)
    SELECT edge.parent_id, staged.id, bool_or(edge.waits) FROM staged_edge AS edge JOIN staged USING (seq) GROUP BY 1, 2
"""
_COUNT_OUTSIDE: Final = """
    WITH made AS MATERIALIZED (
        SELECT parent_id, count(DISTINCT seq) AS jobs, bool_or(waits) AS waits FROM staged_edge
        WHERE parent_seq IS NULL GROUP BY parent_id
    ), locked AS MATERIALIZED (
        SELECT id FROM job WHERE id IN (SELECT parent_id FROM made) ORDER BY id FOR NO KEY UPDATE
    ), counted AS (
        UPDATE job SET dependents = job.dependents + made.jobs FROM made JOIN locked ON locked.id = made.parent_id
        WHERE job.id = made.parent_id RETURNING job.id, job.state, made.jobs, made.waits
    )
    SELECT id, state, jobs FROM counted WHERE waits AND state IN ('succeeded', 'failed', 'canceled')
"""
_COUNT_PENDING: Final = "SELECT count(DISTINCT seq) FROM staged_edge WHERE waits"


@dataclass(frozen=True)
class ChainProblem:
    """What is wrong with an input of a staged job."""

    seq: int
    line: int
    field: str  #: the input's role
    value: str
    message: str


class StagedChains:
    """The edges of the jobs in this transaction's staging table."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def collect(self) -> None:
        """Find the edges. Call it once, after the last entry is staged."""
        self._execute(_COLLECT, {"line": LINE, "from": len(LINE) + 1})
        self._session.execute(text("ANALYZE staged_edge"))

    def problems(self) -> Iterator[ChainProblem]:
        """What is wrong with inputs that are outputs of other lines."""
        for seq, line, role, name, _ in self._rows(_UNKNOWN):
            message = "is the custom_id of no line that is accepted in this batch"
            yield ChainProblem(seq, line, role, _shown(name), message)
        for seq, line, role, name, outputs in self._rows(_NO_SUCH_OUTPUT):
            message = f"has {outputs} output{'s' * (outputs > 1)}, numbered from 0"
            yield ChainProblem(seq, line, role, _shown(name), message)
        taken = [(task, role, one.media.value) for task, spec in TASKS.items() for role, one in spec.inputs.items()]
        tasks, roles, media = zip(*taken, strict=True)
        values = {
            "tasks": list(tasks),
            "roles": list(roles),
            "taken": list(media),
            "all": list(TASKS),
            "made": [spec.output.value for spec in TASKS.values()],
        }
        for seq, line, role, name, made in self._rows(_WRONG_MEDIA, values):
            wanted = next(one.media for task in TASKS.values() for key, one in task.inputs.items() if key == role)
            yield ChainProblem(seq, line, role, _shown(name), f"gives another kind ({made}); {role} takes {wanted}")
        yield from self._cycles()

    def _cycles(self) -> Iterator[ChainProblem]:
        """The jobs that wait for themselves, directly or through others."""
        if not self._rows(_FORWARD)[0][0]:
            return  # every line names earlier ones only
        cycles = list(_cycles((seq, parent) for seq, parent in self._rows(_EDGES)))
        named = self._rows(_NAMES, {"seqs": [seq for cycle in cycles for seq in cycle]})
        lines = {row[0]: row[1] for row in named}
        names = {row[0]: row[2] for row in named}
        for cycle in cycles:
            words = [names[seq] for seq in cycle]
            shown = [*words[:MAX_SHOWN], "…"] if len(words) > MAX_SHOWN else words
            message = f"its inputs form a cycle, each needs the next: {' → '.join([*shown, words[0]])}"
            for seq in cycle:
                yield ChainProblem(seq, lines[seq], "custom_id", names[seq], message)

    def refuse(self, refused: Iterable[int]) -> Iterator[ChainProblem]:
        """Drop these staged jobs and all that depend on them; the problems of the latter."""
        values: dict[str, Any] = {"seqs": list(refused)}
        self._execute(_REFUSE, values)
        for seq, line, role, name in self._rows(_FOLLOWING, values):
            yield ChainProblem(seq, line, role, _shown(name), "is the custom_id of a line that is refused")
        for table in ("staged", "staged_edge"):
            self._execute(f"DELETE FROM {table} USING refused WHERE refused.seq = {table}.seq", {})  # noqa: S608

    def admit(self, tenant_id: str) -> list[tuple[int, str, str, JobState | None]]:
        """Look at the jobs outside of the batch whose outputs are inputs.

        Returns those of which there will be no output: line, role, reference, and state, or None if there is no such
        job.
        """
        values = {"tenant": ids.to_uuid(ids.TENANT, tenant_id)}
        self._execute(_ADMIT, values)
        return [
            (line, role, name, None if state is None else JobState(state))
            for line, role, name, state in self._rows(_NOT_ADMITTED, values)
        ]

    def insert(self) -> int:
        """Store the edges of jobs whose rows this transaction has inserted; returns how many jobs are pending."""
        self._execute(_INSERT_EDGES, {})
        return int(self._rows(_COUNT_PENDING)[0][0])

    def hold_parents(self) -> dict[str, tuple[JobState, int]]:
        """Count the edges at the jobs outside of the batch, and hold these against their end; the transaction's last.

        Returns those that have ended since `admit`: their states, and how many jobs depend on them, which are pending.
        """
        return {ids.from_uuid(ids.JOB, row[0]): (JobState(row[1]), row[2]) for row in self._rows(_COUNT_OUTSIDE)}

    def _rows(self, statement: str, values: Mapping[str, Any] | None = None) -> Any:
        return self._session.connection().exec_driver_sql(statement, dict(values or {})).all()

    def _execute(self, statement: str, values: Mapping[str, Any]) -> None:
        self._session.connection().exec_driver_sql(statement, dict(values))


def _shown(name: str) -> str:
    return name.removeprefix(LINE)


def _cycles(edges: Iterable[tuple[int, int]]) -> Iterator[list[int]]:
    """The cycles of a graph, from a node to the one that it needs; each node is in one at most."""
    parents: dict[int, list[int]] = defaultdict(list)
    children: dict[int, list[int]] = defaultdict(list)
    for seq, parent in edges:
        parents[seq].append(parent)
        children[parent].append(seq)
    left = {seq: len(found) for seq, found in parents.items()}
    ready = [seq for seq in children if seq not in left]
    while ready:
        for child in children.get(ready.pop(), ()):
            left[child] -= 1
            if not left[child]:
                del left[child]
                ready.append(child)
    # what is left is part of a cycle, or needs what is: so from each node a walk to what it needs ends in a cycle
    seen: set[int] = set()
    for start in left:
        walk: dict[int, None] = {}
        node = start
        while node not in seen and node not in walk:
            walk[node] = None
            node = next(parent for parent in parents[node] if parent in left)
        if node in walk:
            nodes = list(walk)
            yield nodes[nodes.index(node) :]
        seen.update(walk)
