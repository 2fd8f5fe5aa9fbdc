"""What a run on unpaired rows says of the weights of its good and bad answers."""

from types import SimpleNamespace

from support.kto_runs import kto

from dpo_lightning.data.examples import EncodedAnswer, Origin
from dpo_lightning.data.kinds.unpaired import EncodedUnpaired
from dpo_lightning.kto import report_balance
from dpo_lightning.losses import KTOLoss


def test_the_balance_of_kinds_is_told(capsys):
    """As the paper has it: weighted good answers 1 to 4/3 of weighted bad ones."""
    for loss, good, bad in ((KTOLoss(), 4, 3), (KTOLoss(), 3, 3), (KTOLoss(0.1, 1.0, 0.1), 10, 100)):
        report_balance(loss, labelled(good, bad))
    report_balance(KTOLoss(), labelled(2, 20, 0.1))
    assert not capsys.readouterr().out
    report_balance(KTOLoss(0.1, 1.0, 0.5), labelled(30, 100))
    report_balance(KTOLoss(), labelled(3, 3, 0.5))
    out = capsys.readouterr().out
    assert "30 good answers weigh 30, 100 bad ones 50" in out
    assert "3 good answers weigh 3, 3 bad ones 1.5" in out


def test_what_weights_do_is_told_once(tiny_llama, capsys):
    """Set up again for the evaluation after training, a module has nothing new to say."""
    data = SimpleNamespace(encoded={"train": labelled(1, 1, 0.5)})
    trainer = SimpleNamespace(datamodule=data, strategy=None)
    module = kto(tiny_llama)
    module.trainer = trainer
    for _ in range(2):
        module.setup("validate")
    assert capsys.readouterr().out.count("answers count by their `weight`, 0.5 to 1") == 1


def labelled(good, bad, weight=1.0):
    """So many answers of each kind; `weight` is that of a bad one."""
    answer = EncodedAnswer((1,), (True,))
    kinds = [(True, 1.0)] * good + [(False, weight)] * bad
    return [EncodedUnpaired(Origin("f", 1), (3,), (answer,), own, good=kind) for kind, own in kinds]
