"""TensorBoard's HParams tab: read back as TensorBoard reads it, record by record."""

import struct

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from bigjax.sweep.worker import write_hparams
from tests.small import small


def sessions(folder):
    """The HParams plugin's data in all event files, by tag."""
    found = {}
    for path in folder.glob("events*"):
        data, at = path.read_bytes(), 0
        while at < len(data):  # a TFRecord: length, its checksum, the event, its checksum
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += length + 16
            for value in event.summary.value:
                plugin = value.metadata.plugin_data
                if plugin.plugin_name == "hparams":
                    found[value.tag] = HParamsPluginData.FromString(plugin.content)
    return found


def test_a_trial_is_one_session_with_its_hyperparameters_and_its_metrics(tmp_path):
    config = small("log.tensorboard=True", "optimizer.learning_rate=0.25", "seed=3")
    write_hparams(
        tmp_path, config, {"eval/test/accuracy": 0.5, "eval/test/confusion_matrix": [[1]]}
    )
    found = sessions(tmp_path / "tensorboard")
    start = found["_hparams_/session_start_info"].session_start_info.hparams
    assert start["optimizer.learning_rate"].number_value == 0.25
    assert start["seed"].number_value == 3
    assert start["optimizer.type"].string_value == "adam"
    assert not any(key.startswith(("log.", "mesh.")) for key in start)
    experiment = found["_hparams_/experiment"].experiment
    assert [info.name.tag for info in experiment.metric_infos] == ["eval/test/accuracy"]
    assert "_hparams_/session_end_info" in found


def test_a_run_without_tensorboard_gets_no_session(tmp_path):
    write_hparams(tmp_path, small(), {"eval/test/accuracy": 0.5})
    assert not (tmp_path / "tensorboard").exists()
