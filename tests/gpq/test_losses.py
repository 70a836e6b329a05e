"""GPQ's losses against the released functions, their oracles and finite differences."""
import numpy as np
import pytest

import gpq_inputs as parity
import gpq_oracles as oracles
from gpq import losses
from gpq_inputs import ALPHA, BETA, BOOKS
from models.session import tf

X = parity.arrays(parity.SEED)
TRAINED = ("features", "target_features", "Z", "prototypes")


def compute(kind):
    """Everything the parity file holds of the losses, from one graph in float32 or float64."""
    with tf.Graph().as_default(), tf.Session() as session:
        x = {name: tf.constant(X[name], kind) for name in TRAINED}
        labels = tf.constant(X["labels"])
        f = losses.intra_normalize(x["features"], BOOKS)
        p = losses.intra_normalize(x["prototypes"], BOOKS)
        codewords = losses.soft_assign(p, x["Z"], BOOKS, ALPHA)
        d = losses.soft_assign(codewords, f, BOOKS, ALPHA)
        g = losses.intra_normalize(losses.reverse_gradient(x["target_features"]), BOOKS)
        logits = losses.class_logits(f, p, BOOKS, BETA)
        npq = losses.n_pair_loss(f, d, labels, BOOKS)
        cls = losses.classification_loss(logits, labels)
        sme = losses.entropy_loss(losses.class_logits(g, p, BOOKS, BETA))
        total = npq + 0.1 * sme + 0.1 * cls
        values = {"intra_norm": f, "soft_prototypes": codewords, "descriptor": d, "logits": logits, "npq_loss": npq,
                  "cls_loss": cls, "sme_loss": sme, "total": total}
        values |= {f"grad_{name}": gradient
                   for name, gradient in zip(TRAINED, tf.gradients(total, list(x.values())), strict=True)}
        return session.run(values)


@pytest.fixture(scope="module")
def computed():
    return compute(tf.float32)


@pytest.fixture(scope="module")
def exact():
    return compute(tf.float64)


def assert_close(found, expected, relative=1e-5):
    np.testing.assert_allclose(found, expected, rtol=0, atol=relative * np.abs(expected).max())


VALUES = ("intra_norm", "soft_prototypes", "descriptor", "logits", "npq_loss", "cls_loss", "sme_loss", "total")
GRADIENTS = tuple(f"grad_{name}" for name in TRAINED)


@pytest.mark.parametrize("name", VALUES)
def test_values_are_the_released_ones(computed, name):
    assert_close(computed[name], parity.CASES[f"gpq/{name}"])


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_the_released_ones(exact, name):
    # float64, so that the difference is the release's own rounding: 1.55e-5 for Z, as α = 20 magnifies that of x·z
    assert_close(exact[name], parity.CASES[f"gpq/{name}"], 2e-5 if name == "grad_Z" else 1e-5)


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_in_float32_differ_by_rounding_only(computed, exact, name):
    # 2.4e-6 and 1.9e-5 for Z on two processors, whose matrix products sum in different orders
    assert_close(computed[name], exact[name], 4e-5 if name == "grad_Z" else 1e-5)


def test_values_are_the_oracles(computed):
    f, p = oracles.intra(X["features"], BOOKS), oracles.intra(X["prototypes"], BOOKS)
    codewords = oracles.soft(p, X["Z"], BOOKS, ALPHA)
    d = oracles.soft(codewords, f, BOOKS, ALPHA)
    logits = oracles.logits(f, p, BOOKS, BETA)
    target = oracles.logits(oracles.intra(X["target_features"], BOOKS), p, BOOKS, BETA)
    expected = {"intra_norm": f, "soft_prototypes": codewords, "descriptor": d, "logits": logits,
                "npq_loss": oracles.n_pair(f, d, X["labels"], BOOKS),
                "cls_loss": oracles.classification(logits, X["labels"]), "sme_loss": oracles.entropy(target)}
    for name, value in expected.items():
        assert_close(computed[name], value)


@pytest.mark.parametrize(("name", "sign"), [("features", 1), ("Z", 1), ("prototypes", 1), ("target_features", -1)])
def test_gradients_are_the_slopes_of_the_oracle_and_the_target_branch_has_the_other_sign(computed, name, sign):
    def loss(value):
        x = {key: X[key] for key in TRAINED} | {name: value}
        return oracles.total(*(x[key] for key in TRAINED), X["labels"], BOOKS, ALPHA, BETA)

    largest = float(np.abs(computed[f"grad_{name}"]).max())
    for at in [(0, 0), (2, 17), (4, 71)]:
        up, down = np.float64(X[name]), np.float64(X[name])
        up[at] += 1e-6
        down[at] -= 1e-6
        slope = (loss(up) - loss(down)) / 2e-6
        assert computed[f"grad_{name}"][at] == pytest.approx(sign * slope, abs=1e-5 * largest)


def test_gradient_reversal_keeps_the_value_and_negates_the_gradient():
    values = np.float32([[1.5, -2], [0, 1e-7]])
    with tf.Graph().as_default(), tf.Session() as session:
        x = tf.constant(values)
        y = losses.reverse_gradient(x)
        found, gradient = session.run([y, tf.gradients(tf.reduce_sum(y ** 2), x)[0]])
    assert (found == values).all()
    np.testing.assert_array_equal(gradient, -2 * values)
