"""Instructions of pickles made by hand, for files that no library would write."""
import pickle


def plain(value):
    """The instructions that make a plain value."""
    return pickle.dumps(value, 2)[2:-1]


def named(module, name):
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def group(*values):
    return pickle.MARK + b"".join(values) + pickle.TUPLE


def called(module, name, *arguments):
    return named(module, name) + group(*arguments) + pickle.REDUCE
