"""What `at demo` shows: planted incidents in made-up metrics, or the liveliest of a server's own."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from anomaly_times.backtest.replay import Job, Replayed, record, replay
from anomaly_times.cli import options as opt
from anomaly_times.cli import render
from anomaly_times.cli.lively import candidates, pick_lively
from anomaly_times.cli.views import stamp
from anomaly_times.demo import Episode, Findings, Outcome, demo_missions, find_episodes, make_demo, match_incidents
from anomaly_times.durations import EPOCH, format_duration
from anomaly_times.errors import AnomalyTimesError, QueryError, UsageError
from anomaly_times.mission import Mission
from anomaly_times.outputs import GENERATOR, Chart, Row, Table, Window, render_page
from anomaly_times.panel import Labels, Scores
from anomaly_times.scoring import format_score
from anomaly_times.settings import Source
from anomaly_times.stores import Store
from anomaly_times.stores.parquet import FolderStore

__all__ = ["DEMO_FOLDER", "OWN_FOLDER", "own_metrics", "planted_incidents"]

DEMO_FOLDER = Path("at-demo")
OWN_FOLDER = Path("at-demo-live")
MARKER = ".anomaly-times-demo"
REPORT = "report.html"
HOUR = timedelta(hours=1)
WEEK = timedelta(days=7)
DAY = timedelta(days=1)
OWN_EVERY = timedelta(hours=6)


def planted_incidents(
    folder: Path, *, now: datetime | None = None, lasts: timedelta = WEEK, workers: int | None = None
) -> Path:
    """Make the demo's metrics, run forecasts and detections over the last week as if live, and tell what was found.

    What they find is stored in the folder, as it would be in a server.

    Args:
        folder: made, or emptied if it is an earlier demo.
        now: where the metrics end; the present by default.
        lasts: how much of the past is scored.
        workers: processes; as many as there are processors by default.

    Returns:
        The page.

    Raises:
        UsageError: the folder holds something else.
    """
    now = now or datetime.now(UTC)
    _make_room(folder)
    incidents = make_demo(folder, end=now)
    missions = demo_missions()
    last = now - (now - EPOCH) % HOUR
    with FolderStore(Source(folder=folder)) as store:
        complete = last + max(mission.offset for mission in missions)
        jobs, errors = _jobs(missions, store, now=complete, lasts=lasts)
        with render.progress("forecasting and scoring, hour by hour", sum(len(job.times()) for job in jobs)) as advance:
            found = Found.of(
                replay(
                    jobs,
                    workers=workers,
                    on_done=advance,
                    on_forecast=lambda mission, made: store.write_forecasts([(mission, made)]),
                    on_scores=lambda mission, scores: store.write_scores([(mission, scores)]),
                ),
                errors,
            )
    _stop_on_error(found)
    findings = match_incidents(found.scores, [each for each in incidents if each.start >= last - lasts])
    report = folder / REPORT
    report.write_text(_planted_page(missions, found, findings), encoding="utf-8")
    _tell_planted(folder, missions, found, findings, now=last)
    return report


@dataclass(frozen=True, eq=False)
class Found:
    """What a replay found: for each mission (by name) its scores, or why there are none.

    `unforecast` counts the points of all missions that have no forecast, and so no score.
    """

    scores: Mapping[str, Scores]
    errors: Mapping[str, AnomalyTimesError]
    unforecast: int = 0

    @classmethod
    def of(cls, replayed: Sequence[Replayed], errors: Mapping[str, AnomalyTimesError]) -> Found:
        """From what was replayed, and the errors of missions that could not be."""
        named = [(each.job.mission.name, each) for each in replayed]
        return cls(
            {name: each.scores for name, each in named if each.scores is not None},
            {**errors, **{name: each.error for name, each in named if each.error is not None}},
            sum(each.unforecast for each in replayed),
        )


def _jobs(
    missions: Sequence[Mission], store: Store, *, now: datetime, lasts: timedelta
) -> tuple[list[Job], dict[str, AnomalyTimesError]]:
    """The replay of each mission over what `lasts` so long before `now`, and why some cannot be."""
    jobs: list[Job] = []
    errors: dict[str, AnomalyTimesError] = {}
    for mission in missions:
        grid = mission.detect_grid(now, lasts)
        try:
            jobs.append(Job(mission, record([mission], store, grid), grid))
        except AnomalyTimesError as exc:
            errors[mission.name] = exc
    return jobs, errors


def own_metrics(source: str, url: str, folder: Path) -> Path:
    """Forecast and score the last day of a few lively metrics of a server; the page is all that is written.

    Args:
        source: its name in the settings, or empty.
        url: its URL instead, or empty.
        folder: where the page goes; what else is there stays.

    Returns:
        The page.

    Raises:
        UsageError: the source is a folder, or something else stands where the page goes.
        QueryError: nothing there is lively enough.
        StoreError: the server is away or refuses.
    """
    from anomaly_times.stores.prometheus import PrometheusStore

    settings, _, described = opt.open_source(source, url)
    if described.folder is not None:
        raise UsageError(
            f"{described.folder} is a folder", hint="`at detect --url FOLDER --promql METRIC` scores one of its metrics"
        )
    report = _room_for_page(folder)
    now = datetime.now(UTC)
    with PrometheusStore(described, state=settings.state_url) as store:
        names = candidates(store.metric_names(now - DAY, now))
        with render.progress(f"looking at {len(names)} metrics of {store.name}", len(names)) as advance:
            missions = pick_lively(store, names, now=now, every=OWN_EVERY, on_done=advance)
        if not missions:
            raise QueryError(
                f"none of the {len(names)} metrics of {store.name} that were looked at has moved for two days",
                hint="name one yourself: `at detect --url … --promql …`",
            )
        jobs, errors = _jobs(missions, store, now=now, lasts=DAY)
        with render.progress("forecasting and scoring the last day", sum(len(job.times()) for job in jobs)) as advance:
            found = Found.of(replay(jobs, workers=1, on_done=advance), errors)
        where = store.name
    _stop_on_error(found)
    missions = sorted(missions, key=lambda mission: -_peak(found, mission))
    page = _own_page(where, missions, found)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        report.write_text(page, encoding="utf-8")
    except OSError as exc:
        raise UsageError(f"{report} cannot be written: {exc.strerror}", hint="name another folder with --out") from exc
    _tell_own(f"--url {shlex.quote(url)}" if url else f"--source {shlex.quote(source)}", missions, found, report)
    return report


def _room_for_page(folder: Path) -> Path:
    """The page's place in `folder`: free, or taken by an earlier page of ours.

    Raises:
        UsageError: it is neither.
    """
    page = folder / REPORT
    try:
        ours = not page.exists() or GENERATOR in page.read_text(encoding="utf-8", errors="replace")
    except OSError:
        ours = False
    if not ours or (folder.exists() and not folder.is_dir()):
        raise UsageError(
            f"{page if page.exists() else folder} is there and is not ours", hint="name another folder with --out"
        )
    return page


def _make_room(folder: Path) -> None:
    """An empty folder, marked as a demo's; what an earlier demo left there is removed.

    Raises:
        UsageError: it is no folder, or holds something that is not ours.
    """
    try:
        if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / MARKER).is_file())):
            raise UsageError(f"{folder} is there and is no demo", hint="name another folder with --out")
        folder.mkdir(parents=True, exist_ok=True)
        for child in folder.iterdir():
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child)
            elif child.name != MARKER:
                child.unlink()
        (folder / MARKER).write_text("`at demo` made this folder, and empties it when it runs again.\n")
    except OSError as exc:
        raise UsageError(f"{folder} cannot be written: {exc.strerror}", hint="name another folder with --out") from exc


def _stop_on_error(found: Found) -> None:
    """Raise the first error where no mission got any score; else say on stderr what went wrong."""
    if not found.scores and found.errors:
        raise next(iter(found.errors.values()))
    for name, error in found.errors.items():
        render.note(f"{name}: {error.message}")


def _points(found: Found) -> int:
    return sum(int((scores.score >= 0).sum()) for scores in found.scores.values())


def _peak(found: Found, mission: Mission) -> float:
    """The highest score of a mission; 0 where it has none."""
    scores = found.scores.get(mission.name)
    return 0.0 if scores is None else float(np.nanmax(scores.score, initial=0.0))


def _unforecast(found: Found) -> str:
    """What to say of points without a forecast; empty where there are none."""
    if not found.unforecast:
        return ""
    return f"{found.unforecast:,} points have no forecast, and so no score"


Key = tuple[str, Labels]
"""A mission's name and a series: two missions may answer equal label sets."""
Charts = list[tuple[Key, Chart]]


def _charts(missions: Sequence[Mission], found: Found, windows: dict[Labels, list[Window]]) -> Charts:
    """A chart for each series: marked ones first, in the order of their windows, then by their highest score."""
    charts: Charts = []
    for mission in missions:
        scores = found.scores.get(mission.name)
        if scores is None:
            continue
        for i, labels in enumerate(scores.labels):
            title = _series([labels]) if labels else mission.promql
            charts.append(
                (
                    (mission.name, labels),
                    Chart(
                        title,
                        scores.grid,
                        scores.y[i],
                        scores.yhat[i],
                        scores.lower[i],
                        scores.upper[i],
                        scores.score[i],
                        subtitle=mission.promql,
                        reason=scores.reason[i] if scores.reason is not None else None,
                        windows=tuple(windows.get(labels, ())),
                    ),
                )
            )

    def rank(item: tuple[Key, Chart]) -> tuple[bool, float]:
        chart = item[1]
        if chart.windows:
            return False, chart.windows[0].start.timestamp()
        highest = np.nanmax(chart.score, initial=0.0) if chart.score is not None else 0.0
        return True, -float(highest)

    return sorted(charts, key=rank)


def _planted_page(missions: Sequence[Mission], found: Found, findings: Findings) -> str:
    windows: dict[Labels, list[Window]] = {}
    for outcome in findings.outcomes:
        for labels in outcome.incident.series:
            windows.setdefault(labels, []).append(_window(outcome))
    charts = _charts(missions, found, windows)
    position = {key: i for i, (key, _) in enumerate(charts)}
    of_series = {labels: i for (_, labels), i in position.items()}
    incidents = tuple(
        Row(
            (
                "found" if outcome.found else "missed",
                outcome.incident.name,
                outcome.incident.description,
                _series(outcome.incident.series),
                stamp(outcome.incident.start),
                _after(outcome),
                _of(outcome),
            ),
            "found" if outcome.found else "missed",
            of_series.get(outcome.incident.series[0]),
            _window(outcome),
        )
        for outcome in findings.outcomes
    )
    hits = sum(outcome.found for outcome in findings.outcomes)
    return render_page(
        "Anomaly Times: the demo",
        [chart for _, chart in charts],
        lead="Made-up metrics of a small web shop, forecast and scored hour by hour as if live. "
        "Incidents are planted in the last week; some are meant to be hard to see.",
        facts=[
            ("Planted incidents", str(len(findings.outcomes))),
            ("Found", str(hits)),
            ("Flagged besides", str(len(findings.besides))),
            ("Series", str(len(charts))),
            ("Points scored", f"{_points(found):,}"),
        ],
        tables=[
            Table(
                "Planted incidents",
                ("", "Incident", "What happened", "Series", "Began", "Found after", "Of"),
                incidents,
            ),
            _episodes_table("Flagged besides", findings.besides, position),
        ],
    )


def _own_page(where: str, missions: Sequence[Mission], found: Found) -> str:
    episodes = find_episodes(found.scores)
    charts = _charts(missions, found, {})
    position = {key: i for i, (key, _) in enumerate(charts)}
    return render_page(
        f"A first look at {where}",
        [chart for _, chart in charts],
        lead="The liveliest of the metrics that were looked at, forecast every six hours over the last day. "
        "Nothing was written to the server.",
        facts=[
            ("Queries", str(len(found.scores))),
            ("Series", str(len(charts))),
            ("Points scored", f"{_points(found):,}"),
            ("Anomalous stretches", str(len(episodes))),
        ],
        tables=[_episodes_table("Anomalous stretches", episodes, position)],
    )


def _episodes_table(title: str, episodes: Sequence[Episode], position: dict[Key, int]) -> Table:
    rows = tuple(
        Row(
            (
                format_score(episode.peak),
                _series([episode.labels]),
                episode.reason,
                episode.mission,
                stamp(episode.start),
                _span(episode.start, episode.end),
            ),
            "",
            position.get((episode.mission, episode.labels)),
            Window(episode.start, episode.end),
        )
        for episode in sorted(episodes, key=lambda episode: -episode.peak)
    )
    return Table(title, ("Highest score", "Series", "Of", "Mission", "From", "Lasted"), rows)


def _tell_planted(
    folder: Path, missions: Sequence[Mission], found: Found, findings: Findings, *, now: datetime
) -> None:
    series = sum(len(scores.labels) for scores in found.scores.values())
    hits = [outcome for outcome in findings.outcomes if outcome.found]
    render.say(
        f"{_points(found):,} points of {series} series scored against hourly forecasts; all of it is in {folder}/"
    )
    render.say(f"found {len(hits)} of {len(findings.outcomes)} planted incidents:")
    if found.unforecast:
        render.say(_unforecast(found))
    render.say_table(
        ("", "incident", "began", "after", "of", "what happened"),
        [
            (
                [("found", "good") if outcome.found else ("missed", "bad")],
                outcome.incident.name,
                stamp(outcome.incident.start),
                _after(outcome),
                _of(outcome),
                outcome.incident.description,
            )
            for outcome in findings.outcomes
        ],
    )
    if findings.besides:
        worst = max(findings.besides, key=lambda episode: episode.peak)
        render.say(
            f"flagged besides: {len(findings.besides)} short stretches, "
            f"the strongest with a score of {worst.peak:.1f} ({worst.reason}) in {_series([worst.labels])}"
        )
    else:
        render.say("nothing else was flagged")
    render.say(f"the page: {folder / REPORT}")
    shown = next((each.incident for each in (*hits, *findings.outcomes)), None)
    metric = shown.series[0].get("__name__") if shown else ""
    mission = next((each for each in missions if each.promql == metric), missions[0])
    at = f"{shown.start + timedelta(minutes=30) if shown else now:%Y-%m-%dT%H:%MZ}"
    query = (
        f"--url {shlex.quote(str(folder))} --promql {mission.promql} --step {format_duration(mission.step)} --at {at}"
    )
    _tell_next(
        [
            f"at detect {query} --name {mission.name} --last 1h --dry-run",
            f"at forecast {query} --horizon 1d --plot forecast.html --dry-run",
            "at demo --url http://localhost:8428",
        ]
    )


def _tell_own(option: str, missions: Sequence[Mission], found: Found, report: Path) -> None:
    episodes = find_episodes(found.scores)
    rows: list[tuple[render.Cell, ...]] = []
    for mission in missions:
        scores = found.scores.get(mission.name)
        if scores is None:
            continue
        own = [episode for episode in episodes if episode.mission == mission.name]
        peak = _peak(found, mission)
        rows.append(
            ([(format_score(peak), "bad" if own else "good")], str(len(own)), str(len(scores.labels)), mission.promql)
        )
    render.say(f"{_points(found):,} points of the last day scored; nothing was written to the server")
    if found.unforecast:
        render.say(_unforecast(found))
    render.say_table((">highest score", ">anomalous stretches", ">series", "query"), rows)
    render.say(f"the page: {report}")
    query = f"{option} --promql {shlex.quote(missions[0].promql)} --step {format_duration(missions[0].step)}"
    _tell_next(
        [
            f"at detect {query} --last 6h --dry-run",
            f"at forecast {query} --plot forecast.html --dry-run",
            f"at doctor {option} --read-only",
        ]
    )


def _tell_next(commands: Sequence[str]) -> None:
    render.say("try next:")
    for command in commands:
        render.say(f"  {command}")


def _window(outcome: Outcome) -> Window:
    incident = outcome.incident
    return Window(incident.start, incident.end, incident.name, "found" if outcome.found else "missed")


def _after(outcome: Outcome) -> str:
    if outcome.delay is None:
        return "–"
    return format_duration(outcome.delay) if outcome.delay else "at once"


def _of(outcome: Outcome) -> str:
    """What the highest score of an incident that was found is of."""
    return max(outcome.episodes, key=lambda episode: episode.peak).reason if outcome.found else ""


def _series(series: Sequence[Labels]) -> str:
    return ", ".join(labels.get("__name__") + str(labels.without(["__name__"])) for labels in series)


def _span(start: datetime, end: datetime) -> str:
    return format_duration(end - start) if end > start else "one point"
