"""Reports travel inside errors, and between versions."""

from __future__ import annotations

import json

from pipelines.doctor.report import ProcessReport, merge_reports, reports_in, to_text, without_reports
from tests.pipelines.doctor.specimens import report


def test_reports_are_found_in_what_an_engine_makes_of_an_error():
    reports = [report(1), report(2, host="b")]
    text = f"DecantError: on purpose: {to_text(reports)} [while running 'Doctor/Raise']"
    java = f"java.lang.RuntimeException: Error received: {text}\n\tat x.Y.z(Y.java:1)\nCaused by: {json.dumps({'m': text})}"
    assert reports_in(java) == reports
    assert "decant-doctor:" not in without_reports(java)


def test_words_that_were_cut_or_changed_are_passed_over():
    whole, cut = to_text([report(1)]), to_text([report(2)])
    assert reports_in(f"{cut[:-40]} {cut.replace(cut[30:40], 'AAAAAAAAAA')} {whole}") == [report(1)]
    assert reports_in("decant-doctor:AAAA:end and nothing") == []


def test_a_report_of_another_version_is_read_as_far_as_it_goes():
    data = {**report(3).model_dump(mode="json"), "of_the_future": [1]}
    del data["device"], data["packages"]
    found = ProcessReport.model_validate(data)
    assert (found.pid, found.packages, found.device.gpus) == (3, {}, ())


def test_what_one_process_says_again_and_again_becomes_one_report():
    first = report(1, elements=(3,), now=10.0)
    last = report(1, elements=(5, 4), now=12.0)
    found = merge_reports([last, report(2), first])
    assert [one.pid for one in found] == [1, 2]
    assert found[0].elements == (3, 4, 5)
    assert found[0].now == 12.0
    assert len(merge_reports([report(1), report(1, started=5.0), report(1, address="10.0.0.2")])) == 3
