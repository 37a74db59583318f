#!/usr/bin/env python3
"""Writes dashboard.json, the Grafana dashboard of a run: Grafana's format repeats itself too much to be kept by hand.

    ops/monitoring/make_dashboard.py           writes it beside this file
    ops/monitoring/make_dashboard.py --check   exit status 1 where the file is another than what would be written

In Grafana: Dashboards, New, Import, this file; it asks for the Prometheus data source.
"""

import json
import pathlib
import sys

PATH = pathlib.Path(__file__).with_name("dashboard.json")
RUN = 'instance=~"$instance"'
SOURCE = {"type": "prometheus", "uid": "${source}"}


def panel(title, unit, queries, help, kind="timeseries", width=8, **more):
    """Queries are pairs of legend and expression, in which % stands for the chosen instances."""
    targets = [
        {"datasource": SOURCE, "expr": expression.replace("%", RUN), "legendFormat": legend, "refId": chr(65 + at)}
        for at, (legend, expression) in enumerate(queries)
    ]
    defaults = {"unit": unit, "custom": {"fillOpacity": 8, "lineWidth": 2, "showPoints": "never"}} if kind == "timeseries" else {"unit": unit}
    defaults.update(more)
    return {
        "title": title, "type": kind, "description": help, "datasource": SOURCE, "targets": targets, "_width": width,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}} if kind == "timeseries" else {"colorMode": "none", "graphMode": "none"},
    }


def stat(title, unit, expression, help):
    return panel(title, unit, [("{{instance}}", expression)], help, kind="stat", width=4)


ROWS = {
    "Now": [
        stat("Step", "locale", "shoal_step{%}", "Steps of the run"),
        stat("Images/s", "none", "shoal_images_per_second{%}", "Over the last steps"),
        stat("Loss", "none", "shoal_loss{%}", "Cross-entropy in nats"),
        stat("NMI(t, t-1)", "none", "shoal_cycle_nmi_previous{%}", "Agreement with the clustering before"),
        stat("Last step", "s", "time() - shoal_last_step_timestamp_seconds{%}", "Ago"),
        stat("Last snapshot", "s", "time() - shoal_last_snapshot_timestamp_seconds{%}", "Ago"),
    ],
    "Learning": [
        panel("Loss", "none", [("{{instance}}", "shoal_loss{%}")], "Cross-entropy against the labels in nats, mean over the last steps"),
        panel("Agreement of clusterings", "none", [
            ("with the one before", "shoal_cycle_nmi_previous{%}"), ("with labels of the stream", "shoal_cycle_nmi_labels{%}"),
        ], "Normalised mutual information", min=0, max=1),
        panel("Reassigned", "percentunit", [("{{instance}}", "shoal_cycle_reassigned_share{%}")], "Samples that changed their cluster, after matching", min=0),
        panel("Largest cluster", "percentunit", [
            ("of new labels", "shoal_label_largest_share{%}"), ("of the clustering", "shoal_cycle_largest_share{%}"),
        ], "Above half: a collapse", min=0),
        panel("Entropy", "none", [("of new labels", "shoal_label_entropy{%}"), ("of the clustering", "shoal_cycle_entropy{%}")], "In nats; ln k where all clusters are equal"),
        panel("Learning rate", "none", [("{{instance}}", "shoal_learning_rate{%}")], "Of the last step"),
    ],
    "Speed": [
        panel("Throughput", "none", [
            ("trained", "rate(shoal_images_total{%}[5m])"), ("decoded", "rate(shoal_images_decoded_total{%}[5m])"),
            ("read", "rate(shoal_samples_read_total{%}[5m])"),
        ], "Images a second; encoding for a clustering is decoded and not trained on", min=0),
        panel("Time of a step", "s", [
            ("{{part}}", "sum by (part) (rate(shoal_step_seconds_sum{%}[5m])) / sum by (part) (rate(shoal_step_seconds_count{%}[5m]))"),
        ], "Mean, by what it went to", min=0),
        panel("Slowest steps", "s", [
            ("{{part}}, 99 of 100 are faster", "histogram_quantile(0.99, sum by (le, part) (rate(shoal_step_seconds_bucket{%}[5m])))"),
        ], "By what it went to", min=0),
        panel("Queues", "percentunit", [("{{queue}}", "shoal_queue_length{%} / shoal_queue_capacity{%}")], "How full; the narrow place is where a full one meets an empty one", min=0, max=1),
        panel("Bytes read", "Bps", [("{{instance}}", "rate(shoal_read_bytes_total{%}[5m])")], "From files and servers", min=0),
        panel("Shards open", "none", [("{{activity}}", "shoal_shards_open{%}")], "By what they are at", min=0),
        panel("Clusterings", "s", [
            ("whole", "rate(shoal_cycle_seconds_sum{%}[1h]) / rate(shoal_cycle_seconds_count{%}[1h])"),
            ("training stood still", "rate(shoal_cycle_stood_seconds_sum{%}[1h]) / rate(shoal_cycle_stood_seconds_count{%}[1h])"),
        ], "Time of one", min=0),
        panel("Snapshots", "s", [
            ("whole", "rate(shoal_snapshot_seconds_sum{%}[1h]) / rate(shoal_snapshot_seconds_count{%}[1h])"),
            ("training stood still", "rate(shoal_snapshot_stood_seconds_sum{%}[1h]) / rate(shoal_snapshot_stood_seconds_count{%}[1h])"),
        ], "Time of one", min=0),
        panel("Ranks that wait", "percentunit", [("rank {{rank}}", "topk(8, rate(shoal_rank_wait_seconds_total{%}[5m]))")], "Time that a rank waits for its own batches; what one waits for, all wait for", min=0),
        panel("GPU memory", "bytes", [("{{what}}", "shoal_gpu_memory_bytes{%}")], "Of all processes on it", min=0),
    ],
    "Losses": [
        panel("Lost", "none", [("{{reason}}", "rate(shoal_samples_lost_total{%}[5m])")], "Samples a second, by reason", width=12, min=0),
        panel("Passed over", "none", [("{{rule}}", "rate(shoal_samples_filtered_total{%}[5m])")], "Samples a second, by rule", width=12, min=0),
    ],
}


def dashboard():
    panels, y, number = [], 0, 0
    for title, row in ROWS.items():
        number += 1
        panels.append({"type": "row", "title": title, "id": number, "collapsed": False, "panels": [], "gridPos": {"h": 1, "w": 24, "x": 0, "y": y}})
        y, x, height = y + 1, 0, 4 if row[0]["type"] == "stat" else 8
        for made in row:
            width = made.pop("_width")
            if x + width > 24:
                x, y = 0, y + height
            number += 1
            panels.append({"id": number, "gridPos": {"h": height, "w": width, "x": x, "y": y}, **made})
            x += width
        y += height
    variables = [
        {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        {
            "name": "instance", "label": "run", "type": "query", "datasource": SOURCE, "query": "label_values(shoal_info, instance)",
            "multi": True, "includeAll": True, "refresh": 2, "current": {"text": "All", "value": "$__all"},
        },
    ]
    return {
        "title": "shoal", "uid": "shoal", "tags": ["shoal"], "schemaVersion": 39, "editable": True, "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"}, "templating": {"list": variables}, "panels": panels,
    }


def main():
    text = json.dumps(dashboard(), indent=1) + "\n"
    if "--check" in sys.argv[1:]:
        sys.exit(PATH.read_text() != text)
    PATH.write_text(text)


if __name__ == "__main__":
    main()
