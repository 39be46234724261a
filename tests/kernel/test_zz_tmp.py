from tests.kernel.conftest import *  # noqa


def test_serial(book):
    book.ok(
        "import random\nimport numpy as np\nclass M:\n    def __init__(self, w): self.w = w\ndef build(lr):\n    return M(np.random.rand(3) * lr)"
    )
    book.ok("%%flowsetup\ndigits = 3")
    book.ok("%%flowparams\nepochs: int = 3")
    book.ok("%%flowstep start\nrates = [0.1, 0.2]\nshared = {'n': 0}")
    book.ok(
        "%%flowstep train --foreach 'i, lr in enumerate(rates)'\nm = build(lr)\nshared['n'] += epochs\nscore = round(random.random(), digits)"
    )
    book.ok("%%flowstep grade\ngood = score > 0.5")
    book.ok(
        "%%flowstep pick --join train,grade\nbest = max(train, key=lambda t: t.score)\nws = sum(t.m.w.sum() for t in train)\ngoods = [t.good for t in grade]"
    )
    book.ok("%%flowstep maybe --when 'ws > 100'\nz = 1")
    book.ok("%%flowstep risky --catch err\n1 / 0")
    print(book.ok("%flow check --serial"))
    print(book.ok("best.m.w, goods, type(err)"))
