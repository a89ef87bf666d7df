from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from benchmarks.evidence import nab_panel
from benchmarks.nab_score import NabFile, file_score, nab_score, windowed_gaussian

# What the Numenta Anomaly Benchmark publishes in results/windowedGaussian/windowedGaussian_standard_scores.csv, where
# its 58 files make -24.0131054891.
PUBLISHED = {
    "artificialWithAnomaly/art_daily_flatmiddle.csv": -1.0,
    "artificialWithAnomaly/art_daily_jumpsdown.csv": -1.0,
    "artificialWithAnomaly/art_daily_jumpsup.csv": -1.0,
    "artificialWithAnomaly/art_daily_nojump.csv": -1.0,
    "artificialWithAnomaly/art_increase_spike_density.csv": -1.0,
    "artificialWithAnomaly/art_load_balancer_spikes.csv": -0.692444609523,
    "realAWSCloudwatch/ec2_cpu_utilization_24ae8d.csv": -1.26667875935,
    "realAWSCloudwatch/ec2_cpu_utilization_53ea38.csv": -0.141423196117,
    "realAWSCloudwatch/ec2_cpu_utilization_5f5533.csv": -2.0,
    "realAWSCloudwatch/ec2_cpu_utilization_77c1ca.csv": -1.0,
    "realAWSCloudwatch/ec2_cpu_utilization_825cc2.csv": 0.956537840284,
    "realAWSCloudwatch/ec2_cpu_utilization_ac20cd.csv": 0.86067182427,
    "realAWSCloudwatch/ec2_cpu_utilization_c6585a.csv": -1.32,
    "realAWSCloudwatch/ec2_cpu_utilization_fe7f93.csv": 0.638757791772,
    "realAWSCloudwatch/ec2_disk_write_bytes_1ef3de.csv": -4.19089678552,
    "realAWSCloudwatch/ec2_disk_write_bytes_c0d644.csv": -1.09599853032,
    "realAWSCloudwatch/ec2_network_in_257a54.csv": 0.86067182427,
    "realAWSCloudwatch/ec2_network_in_5abac7.csv": -3.52193223519,
    "realAWSCloudwatch/elb_request_count_8c0756.csv": -0.138449197924,
    "realAWSCloudwatch/grok_asg_anomaly.csv": 2.37942230674,
    "realAWSCloudwatch/iio_us-east-1_i-a2eb1cd9_NetworkIn.csv": -2.0,
    "realAWSCloudwatch/rds_cpu_utilization_cc0c53.csv": -0.138449197924,
    "realAWSCloudwatch/rds_cpu_utilization_e47b3b.csv": -0.138449197924,
}


def test_every_file_scores_what_nab_publishes_for_its_windowed_gaussian(shared_data: Path) -> None:
    folder = shared_data / "nab"
    if not folder.is_dir():
        pytest.skip("the series of NAB are not on this machine")
    _, files = nab_panel(folder)
    scores = {}
    for file in files:
        with (folder / file.name).open() as lines:
            values = np.array([float(row["value"]) for row in csv.DictReader(lines)])
        scores[file.name] = file_score(windowed_gaussian(values), file)
    assert scores == pytest.approx(PUBLISHED, abs=1e-9)


def test_a_window_that_slides_forgets_what_was_long_ago() -> None:
    values = np.random.default_rng(0).standard_normal(20_000)
    values[:3000] *= 100
    values[[7000, 19_000]] = 12.0
    assert np.flatnonzero(windowed_gaussian(values)[6401:]).tolist() == [19_000 - 6401]


def test_silence_scores_0_a_hit_at_once_100_and_a_false_alarm_takes_off() -> None:
    file = NabFile("made-up", 0, np.arange(4000), ((2000, 2200),))
    flags = np.zeros(4000, dtype=np.bool_)
    assert nab_score([flags], [file]) == 0.0
    flags[2000] = True
    assert nab_score([flags], [file]) == pytest.approx(100.0)
    flags[[100, 1900]] = True
    assert nab_score([flags], [file]) == pytest.approx(100 - 100 * 0.11 / 2)
