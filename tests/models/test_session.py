"""What TensorFlow writes to stderr while it is loaded: notes are kept back, errors are not."""
import os
import subprocess
import sys

from tiny import PROJECT


def stderr_of(code, **environment):
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True,
                          env={**{key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"},
                               **environment})
    return done.stderr


def test_tensorflow_loads_and_runs_without_a_word():
    assert stderr_of("""
from models.session import open_session, tf
graph = tf.Graph()
with graph.as_default():
    one = tf.constant(1)
with open_session(graph) as session:
    session.run(one)
""") == ""


def test_a_user_who_sets_the_level_sees_the_notes():
    assert "WARNING: All log messages before absl" in stderr_of("from models import session", TF_CPP_MIN_LOG_LEVEL="0")


def test_errors_are_shown_even_if_they_end_the_process():
    assert stderr_of("""
import os
from models.session import without_notes
with without_notes():
    os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\\n")
    os.write(2, b"I0000 00:00:1 cudart_stub.cc:31] Could not find cuda drivers\\nF0000 00:00:1 no AVX\\n")
    os.abort()
""") == "F0000 00:00:1 no AVX\n"


def test_a_failing_import_ends_in_its_traceback_alone():
    stderr = stderr_of("""
from models.session import without_notes
with without_notes():
    import no_such_module
""")
    assert stderr.startswith("Traceback")
    assert "no_such_module" in stderr
