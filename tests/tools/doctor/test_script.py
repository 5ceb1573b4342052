"""The reading of a training script: what it finds, on which line, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from distlr.errors import ConfigurationError
from distlr.tools.doctor import rules_horovod, rules_job, rules_keras, rules_losses, script
from distlr.tools.doctor.script import read

ROOT = Path(__file__).resolve().parents[3]

# A line ends with what is to be found on it: "#! status | words of what is found | words of what to do".
WRONG = """
=== import
import horovod.tensorflow.keras as hvd  #! warning | averages nothing, and its callbacks raise | distlr.horovod as hvd
=== import under another name
import os, horovod.keras as thvd  #! warning | horovod.keras as thvd | import distlr.horovod as thvd
=== import from
from horovod.tensorflow import keras as h  #! warning | import keras as h | import distlr.horovod as h
=== import of callbacks
from horovod.keras.callbacks import (  #! warning | callbacks raise | and hvd.callbacks.A, hvd.callbacks.B
    A, B as C)
=== import inside a function
def train():
    import horovod.tensorflow.keras as hvd  #! warning | averages nothing | distlr.horovod
=== import of what the drop-in lacks
import horovod.tensorflow.keras as hvd  #! warning | averages nothing | It does not have elastic, nccl_built.
state = hvd.elastic.KerasState(1)
hvd.size(), hvd.nccl_built()
=== optimizer
import horovod.tensorflow.keras as thvd  #! warning | |
opt = thvd.DistributedOptimizer(opt)  #! error | `thvd.DistributedOptimizer(...)` averages nothing | job.optimizer(
=== optimizer by its full name
import horovod.tensorflow.keras  #! warning | |
opt = horovod.tensorflow.keras.DistributedOptimizer(opt)  #! error | averages nothing | distlr.horovod
=== optimizer imported by itself
from horovod.keras import DistributedOptimizer as D  #! warning | | and hvd.DistributedOptimizer
opt = D(opt)  #! error | `D(...)` averages nothing | distlr.horovod
=== optimizer of horovod.tensorflow
import keras
import horovod.tensorflow as hvd
opt = hvd.DistributedOptimizer(keras.optimizers.SGD(0.1))  #! error | averages nothing | distlr.horovod
=== optimizer where a failed import leaves None
try:
    import horovod.keras as hvd  #! warning | |
except ImportError:
    hvd = None
opt = hvd.DistributedOptimizer(opt)  #! error | averages nothing | distlr.horovod
=== callback
import horovod.tensorflow.keras as hvd  #! warning | |
callbacks = [
    hvd.callbacks.BroadcastGlobalVariablesCallback(0),  #! error | raises AttributeError | job.callbacks([...])
]
=== callback imported by itself
from horovod.tensorflow.keras.callbacks import MetricAverageCallback as M  #! warning | |
c = [M()]  #! error | `M` raises AttributeError | exact metrics
=== callbacks under another name
import horovod.tensorflow.keras as hvd  #! warning | |
cb = hvd.callbacks
w = cb.LearningRateWarmupCallback(0.1)  #! error | raises AttributeError | warmup="5ep"
=== schedule callback
from horovod.keras import callbacks  #! warning | | hvd.callbacks
w = callbacks.LearningRateScheduleCallback(0.1, 1)  #! error | raises AttributeError | distlr.schedules.PerEpoch
=== plateau
import keras
from keras.callbacks import ReduceLROnPlateau as R
rate = keras.optimizers.schedules.CosineDecay(0.1, 9)
opt = keras.optimizers.Adam(learning_rate=rate)
c = [R()]  #! error | `R` beside a schedule as the rate: TypeError | distlr.callbacks.ReduceLROnPlateau
=== plateau of tf.keras
import tensorflow as tf
from tensorflow.keras.optimizers import schedules, SGD
opt = SGD(schedules.ExponentialDecay(1, 2, 3))
tf.keras.callbacks.ReduceLROnPlateau()  #! error | TypeError | job.callbacks
=== experimental_run_tf_function
model.compile("sgd", "mse", experimental_run_tf_function=False)  #! error | TypeError on Keras 3 | Leave it out
=== jit_compile
import distlr
model.compile("sgd", jit_compile=True)  #! warning | several devices | Leave it out
=== lr set
model.optimizer.lr = 0.1  #! error | nothing reads it | optimizer.learning_rate = x
=== lr read
print(self.model.optimizer.lr)  #! error | `self.model.optimizer.lr` is gone | optimizer.learning_rate
=== lr of an optimizer
import keras
opt = keras.optimizers.SGD(0.1)
opt.lr.assign(1)  #! error | `opt.lr` is gone | optimizer.learning_rate
=== lr as an argument
from tensorflow.keras.optimizers import SGD
opt = SGD(lr=0.1)  #! error | `SGD(lr=...)`: ValueError | learning_rate=
=== set_value of lr
from tensorflow.keras import backend as K
K.set_value(model.optimizer.lr, 0.1)  #! error | `model.optimizer.lr` is gone | optimizer.learning_rate = x
=== set_value
from keras import backend as K
K.set_value(model.optimizer.learning_rate, 0.1)  #! error | `K.set_value` is gone | optimizer.learning_rate = x
=== scaled twice
import keras, distlr
job = distlr.init()
opt = job.optimizer(
    keras.optimizers.SGD(0.1 * job.replicas),  #! error | `0.1 * job.replicas` is the rate of job.optimizer | one device
    batch,
)
=== scaled twice, by names
import keras, distlr
job = distlr.init()
n = job.strategy.num_replicas_in_sync
lr = n * 0.1  #! error | `n * 0.1` is the rate | base_batch=
rate = keras.optimizers.schedules.CosineDecay(lr, 9)
opt = job.optimizer(keras.optimizers.SGD(learning_rate=rate), batch=batch, rule="sqrt")
=== scaled twice, by Horovod's size
import numpy as np
import keras, distlr
import distlr.horovod as hvd
args.lr *= np.sqrt(hvd.size())  #! error | `args.lr *= np.sqrt(hvd.size())` is the rate | one device
opt = job.optimizer(keras.optimizers.Adam(float(args.lr)), batch)
=== no job.callbacks
import distlr
job = distlr.init()
model.fit(data, epochs=2)  #! warning | fit without job.callbacks | callbacks=job.callbacks([...])
=== saver of rank 0
import keras, distlr
job = distlr.init()
if job.is_root:
    c.append(keras.callbacks.ModelCheckpoint("x"))  #! OK | harmless | on every rank
model.fit(x, callbacks=job.callbacks(c))
=== model outside of the scope
import keras, distlr
job = distlr.init()
model = keras.Sequential([])  #! warning | `model` is made outside of `with job.scope():` | Make and compile it inside
with job.scope():
    model.compile(job.optimizer("sgd"))
=== a mean loss of one's own
import keras, distlr
import tensorflow as tf
job = distlr.init()
class Net(keras.Model):
    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(data) - 1) ** 2)  #! warning | on n replicas | job.mean_loss(losses, batch)
=== a mean of Keras' unreduced losses
import distlr
import tensorflow as tf
from tensorflow import keras
from keras import ops
job = distlr.init()
class Net(keras.Model):
    def train_step(self, data):
        with tf.GradientTape() as tape:
            losses = keras.losses.binary_crossentropy(data, self(data))
            loss = ops.mean(losses)  #! warning | `ops.mean` | job.mean_loss
=== no Python
x = 1
print 'x'  #! error | no Python |
"""

RIGHT = """
=== nothing
=== the drop-in
import keras
from keras.callbacks import ModelCheckpoint
import distlr.horovod as hvd
hvd.init()
opt = hvd.DistributedOptimizer(keras.optimizers.SGD(0.1 * hvd.size()))
model.compile(opt, "mse")
callbacks = [hvd.callbacks.BroadcastGlobalVariablesCallback(0), hvd.callbacks.MetricAverageCallback()]
if hvd.rank() == 0:
    callbacks.append(ModelCheckpoint("x"))
model.fit(x, callbacks=callbacks)
=== the drop-in, with a schedule and a plateau
import keras
import distlr.horovod as hvd
opt = hvd.DistributedOptimizer(keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1 * hvd.size(), 9)))
model.fit(x, callbacks=[hvd.callbacks.MetricAverageCallback(), keras.callbacks.ReduceLROnPlateau()])
=== another hvd
import mine as hvd
opt = hvd.DistributedOptimizer(opt)
hvd.callbacks.MetricAverageCallback()
=== hvd as an argument
def f(hvd):
    return hvd.DistributedOptimizer(1), hvd.callbacks.MetricAverageCallback()
=== callbacks of one's own
from mine import ReduceLROnPlateau, MetricAverageCallback
c = [MetricAverageCallback()]
=== a tape, and an optimizer of TensorFlow 1
import horovod.tensorflow as hvd
t = hvd.DistributedGradientTape(t)
o = hvd.DistributedOptimizer(tf.compat.v1.train.AdamOptimizer(0.1))
=== torch
import horovod.torch as hvd
o = hvd.DistributedOptimizer(o)
=== a plateau on a float rate
import keras
o = keras.optimizers.SGD(0.1)
c = keras.callbacks.ReduceLROnPlateau()
=== a plateau on a rate that is not known
import keras
o = keras.optimizers.SGD(make())
c = keras.callbacks.ReduceLROnPlateau()
=== a plateau on a rate of two kinds
import keras
rate = 0.1
if decay:
    rate = keras.optimizers.schedules.CosineDecay(0.1, 9)
o = keras.optimizers.SGD(rate)
c = keras.callbacks.ReduceLROnPlateau()
=== a plateau on an adopted schedule
import keras, distlr
job = distlr.init()
o = job.optimizer(keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 9)))
model.fit(x, callbacks=job.callbacks([keras.callbacks.ReduceLROnPlateau()]))
=== jit_compile without several devices
import keras, tensorflow as tf
model.compile("sgd", jit_compile=True)
=== jit_compile elsewhere
import distlr
model.compile("sgd", jit_compile="auto")
tf.function(jit_compile=True)
=== an lr of something else
args.lr = cfg.optimizer.lr
self.lr = 1
scheduler.lr
=== set_value that tf.keras has
from tensorflow.keras import backend as K
K.set_value(model.optimizer.learning_rate, 1)
=== scaled by hand
import keras, distlr
job = distlr.init()
o = job.optimizer(keras.optimizers.SGD(0.1 * job.replicas))
=== scaled by hand, with rule none
import keras, distlr
job = distlr.init()
o = job.optimizer(keras.optimizers.SGD(0.1 * job.size), batch, rule="none")
=== scaled by a rule of one's own
import keras, distlr
job = distlr.init()
o = job.optimizer(keras.optimizers.SGD(0.1 * job.size), batch, rule=mine)
=== steps by the size
import keras, distlr
job = distlr.init()
steps = 9000 * job.size
o = job.optimizer(keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, steps)), batch)
=== a rate divided by the size
import keras, distlr
job = distlr.init()
o = job.optimizer(keras.optimizers.SGD(0.1 / (2 * job.size)), batch)
=== job.callbacks in another function
import distlr
def train(job):
    model.fit(x, callbacks=job.callbacks())
train(distlr.init())
=== fit of something else
import distlr
job = distlr.init()
StandardScaler().fit(x)
scaler.fit(x)
=== a model inside of the scope
import keras, distlr
job = distlr.init()
with job.scope():
    model = keras.Sequential([])
    model.compile(job.optimizer("sgd"))
=== a model that is not trained
import keras, distlr
job = distlr.init()
teacher = keras.Sequential([])
with job.scope():
    model = build()
    model.compile("sgd")
=== a scope that is entered elsewhere
import keras, distlr
job = distlr.init()
stack.enter_context(job.scope())
model = keras.Sequential([])
model.compile("sgd")
with job.scope():
    pass
=== a loss for replicas, and a mean of something else
import keras, distlr
import tensorflow as tf
job = distlr.init()
class Net(keras.Model):
    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = job.mean_loss((self(data) - 1) ** 2, batch)
        return {"loss": tf.reduce_mean(loss)}
=== a Keras loss, and a term of one's own
import keras, distlr
import tensorflow as tf
job = distlr.init()
class Net(keras.Model):
    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = self.compute_loss(data, data, self(data)) + tf.reduce_mean(self.kl)
=== a loss that is not known
import keras, distlr
import tensorflow as tf
job = distlr.init()
class Net(keras.Model):
    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = self.loss_fn(data, self(data)) + tf.reduce_mean(self.kl)
=== a mean loss on one device, or on Horovod's ranks
import keras
import tensorflow as tf
import distlr.horovod as hvd
class Net(keras.Model):
    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(data) - 1) ** 2)
=== an escape that Python warns of
x = "\\d"
assert (1, "hvd.DistributedOptimizer")
"""


def snippets(table: str) -> dict[str, str]:
    parts = (part.partition("\n") for part in table.lstrip("\n").removeprefix("=== ").split("\n=== "))
    return {name: text for name, _, text in parts}


@pytest.fixture
def remarks(tmp_path):
    """Reads a text as a script: {line: (status, found, to_do)}, one finding a line."""

    def reading(text: str) -> dict[int, tuple[str, str, str]]:
        path = tmp_path / "train.py"
        path.write_text(text)
        findings = read(path)
        if [finding.name for finding in findings] == [str(path)]:
            assert findings[0].status == "OK"
            return {}
        by_line = {int(f.name.removeprefix(f"{path}:")): (f.status, f.found, f.to_do) for f in findings}
        assert len(by_line) == len(findings), "two findings on one line"
        return by_line

    return reading


@pytest.mark.parametrize("text", snippets(WRONG).values(), ids=snippets(WRONG))
def test_what_is_wrong_is_found_on_its_line(remarks, text) -> None:
    marks = {i: line.split("#!")[1].split("|") for i, line in enumerate(text.splitlines(), 1) if "#!" in line}
    actual = remarks(text)
    assert actual.keys() == marks.keys()
    for line, (status, words, to_do) in marks.items():
        assert actual[line][0] == status.strip()
        assert words.strip() in actual[line][1]
        assert to_do.strip() in actual[line][2]


@pytest.mark.parametrize("text", snippets(RIGHT).values(), ids=snippets(RIGHT))
def test_what_is_right_or_not_known_is_left_alone(remarks, text) -> None:
    assert remarks(text) == {}


def test_the_drop_in_or_nothing_is_left_alone(remarks) -> None:
    text = snippets(RIGHT)["the drop-in"].replace("import distlr.horovod as hvd", "hvd = None")
    assert remarks(f"try:\n    import distlr.horovod as hvd\nexcept ImportError:\n    pass\n{text}") == {}


def test_a_loss_that_was_measured_is_not_judged(tmp_path) -> None:
    path = tmp_path / "train.py"
    path.write_text(snippets(WRONG)["a mean loss of one's own"])
    assert [finding.status for finding in read(path)] == ["warning"]
    assert [finding.status for finding in read(path, measured=True)] == ["OK"]


LAUNCHED = ROOT / "tests/distributed/scripts"
CANARIES = sorted((ROOT / "tests/canaries/scripts").glob("*.py"))
SCRIPTS = [
    *sorted((ROOT / "launch").glob("*.py")),
    *CANARIES,
    LAUNCHED / "horovod_script.py",
    LAUNCHED / "twenty_steps.py",
]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_false_alarm_on_scripts_that_run(path) -> None:
    (finding,) = read(path)
    assert (finding.status, finding.name) == ("OK", str(path))


@pytest.mark.parametrize("text", ["import tf_keras as keras", 'import os\nos.environ["TF_USE_LEGACY_KERAS"] = "1"'])
def test_legacy_keras_is_reported_and_nothing_else(tmp_path, text) -> None:
    path = tmp_path / "old.py"
    path.write_text(f"{text}\nimport horovod.tensorflow.keras as hvd\nhvd.DistributedOptimizer(o)")
    (finding,) = read(path)
    assert (finding.name, finding.status) == (str(path), "warning")
    assert "legacy Keras" in finding.found


def test_a_long_chain_of_names_is_read_at_once(tmp_path) -> None:
    path = tmp_path / "long.py"
    path.write_text("x = keras.Input()\n" + "x = x.map(f).filter(x)\n" * 300 + "x.optimizer(x.lr, batch)\n")
    (finding,) = read(path)
    assert finding.status == "OK"


@pytest.mark.parametrize("name", ["absent.py", "notebook.ipynb", "."])
def test_what_is_no_python_file_is_refused(tmp_path, name) -> None:
    (tmp_path / "notebook.ipynb").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"`--script` must be a Python file.*nbconvert"):
        read(tmp_path / name)


@pytest.mark.parametrize("content", [b"x = '\xff'", b"x = \0", b"if x:"])
def test_what_python_cannot_read_is_an_error(tmp_path, content) -> None:
    path = tmp_path / "broken.py"
    path.write_bytes(content)
    (finding,) = read(path)
    assert finding.status == "error"
    assert "no Python" in finding.found


def test_code_that_is_nested_too_deeply_is_reported(tmp_path) -> None:
    path = tmp_path / "deep.py"
    path.write_text("x = 1" + " + 1" * 5000)
    (finding,) = read(path)
    assert (finding.name, finding.status) == (str(path), "warning")
    assert "too deeply" in finding.found


def test_a_script_is_never_run(tmp_path, capsys) -> None:
    path = tmp_path / "loud.py"
    path.write_text("print('run')\nraise SystemExit(3)\n")
    read(path)
    assert capsys.readouterr().out == ""


CHAINS = {
    "the same line": "x = 1\n",
    "names": "x{i} = 1\n",
    "calls": "print(x)\n",
    "a chain": "x{i} = x{before}\nx{i}.fit()\n",
}


@pytest.mark.parametrize("line", CHAINS.values(), ids=CHAINS)
def test_a_long_script_costs_as_much_a_line_as_a_short_one(tmp_path, load_helper, line) -> None:
    operations_of = load_helper(Path(__file__).parents[2] / "_operation_count.py").operations_of
    costs = []
    for count in (200, 800):
        script = tmp_path / f"{count}.py"
        script.write_text("".join(line.format(i=i, before=i - 1) for i in range(count)))
        costs.append(operations_of(lambda script=script: read(script)))
    assert costs[1] < 5 * costs[0]


def test_a_name_is_followed_however_long_the_way(tmp_path) -> None:
    script = tmp_path / "train.py"
    names = "".join(f"hvd{i + 1} = hvd{i}\n" for i in range(3000))
    script.write_text(f"import horovod.tensorflow.keras as hvd0\n{names}opt = hvd3000.DistributedOptimizer(1)\n")
    assert any("averages nothing" in finding.found for finding in read(script))


def test_every_rule_is_applied():
    modules = (rules_horovod, rules_job, rules_keras, rules_losses)
    rules = {getattr(module, name) for module in modules for name in module.__all__}
    assert rules == set(script._RULES), "a rule in `__all__` of rules_*.py belongs into _RULES of script.py"
