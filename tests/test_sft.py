"""Fine-tuning: what is learnt, what is replayed, and the error for a conversation that does not fit."""

from dataclasses import replace

import pytest
import torch

from llama2lab.engine.device import Machine
from llama2lab.engine.errors import LabError
from llama2lab.engine.optim import Optim
from llama2lab.model.chat import CHAT_TEMPLATE
from llama2lab.model.network import Llama, ModelConfig
from llama2lab.model.tokenizer import CONTROL_TOKENS, train_tokenizer
from llama2lab.stages.sft import SFTSettings, format_ids, learn_format, replayed, sft

CPU = Machine(torch.device("cpu"), "fp32")
ROWS = [{"messages": [{"role": "user", "content": "Say yes."}, {"role": "assistant", "content": "Yes it is."}]}] * 12
TEXTS = ["Mira lives on Mill Lane.", "Tom eats soup in the evening."] * 20
SETTINGS = SFTSettings(epochs=1.0, seq_len=64, batch_tokens=128, optim=Optim(lr=1e-3), replay=0.0)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS + ["Say yes. Yes it is."] * 20, 300, chat_template=CHAT_TEMPLATE)


def model(tokenizer, context=128):
    torch.manual_seed(0)
    return Llama(
        ModelConfig(
            vocab_size=len(tokenizer), dim=32, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=48, max_seq_len=context
        )
    )


def test_only_the_answers_tokens_are_predicted(tokenizer):
    metrics = sft(model(tokenizer), tokenizer, ROWS, SETTINGS, 0, CPU)
    answer = len(tokenizer(" Yes it is. ", add_special_tokens=False)["input_ids"]) + 1  # and its </s>
    assert metrics["predicted_tokens"] == 12 * answer


def test_as_much_pretraining_text_is_replayed_as_asked_for(tokenizer):
    documents = replayed(tokenizer, TEXTS, 100, 64)
    sizes = [len(ids) for ids, _ in documents]
    assert 100 <= sum(sizes) < 100 + max(sizes)
    assert all(ids[0] == tokenizer.bos_token_id and all(mask) for ids, mask in documents)
    assert replayed(tokenizer, TEXTS, 0, 64) == []
    assert all(len(ids) <= 5 for ids, _ in replayed(tokenizer, TEXTS, 50, 5))


def test_the_format_is_learnt_in_its_own_embeddings_alone(tokenizer):
    """Rows of [INST] and the like move and the answers grow likelier; every other weight stays what it was."""
    from llama2lab.model.chat import encode_chats
    from llama2lab.model.logprobs import answer_loglikelihoods

    m = model(tokenizer)
    m.lm_head.weight.requires_grad_(False)  # what was frozen before stays so
    frozen = [name for name, p in m.named_parameters() if not p.requires_grad]
    before = {name: p.detach().clone() for name, p in m.named_parameters()}
    encoded = encode_chats(tokenizer, [row["messages"] for row in ROWS])
    likely = answer_loglikelihoods(m, encoded[:1], tokenizer.pad_token_id, CPU)[0]
    learn_format(m, tokenizer, encoded * 4, replace(SETTINGS, format_lr=3e-2), SETTINGS.seq_len, 0, CPU, "test")
    ids = format_ids(tokenizer)
    assert {tokenizer.convert_tokens_to_ids(t) for t in ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")} <= set(ids)
    assert not set(ids) & set(map(tokenizer.convert_tokens_to_ids, CONTROL_TOKENS[:4]))
    moved = (m.embed.weight != before["embed.weight"]).any(1).nonzero().flatten().tolist()
    assert set(moved) <= set(ids) and tokenizer.convert_tokens_to_ids("[/INST]") in moved
    assert all(torch.equal(p, before[name]) for name, p in m.named_parameters() if name != "embed.weight")
    assert [name for name, p in m.named_parameters() if not p.requires_grad] == frozen
    assert answer_loglikelihoods(m, encoded[:1], tokenizer.pad_token_id, CPU)[0] > likely


def test_sft_learns_the_format_first_when_asked_to(tokenizer):
    """The same rows give another model with it, and the same one each time: an interrupted stage may do it again."""

    def trained(n):
        m = model(tokenizer)
        sft(m, tokenizer, ROWS, replace(SETTINGS, format_examples=n), 0, CPU)
        return m.embed.weight.detach()

    assert torch.equal(trained(8), trained(8)) and not torch.equal(trained(8), trained(0))


def test_replay_keeps_what_fine_tuning_alone_forgets(tokenizer):
    """A model that knows a text keeps it with replay, and loses more of it without."""
    from llama2lab.model.logprobs import answer_loglikelihoods
    from llama2lab.stages.pretrain import PretrainSettings, encode_documents, pretrain

    shape = {**vars(model(tokenizer).config), "rope_scaling": None}
    base, _ = pretrain(
        TEXTS,
        tokenizer,
        PretrainSettings(shape, epochs=15.0, seq_len=64, batch_tokens=128, optim=Optim(lr=1e-2), sample_every=10**9),
        0,
        CPU,
    )
    encoded = list(encode_documents(tokenizer, TEXTS[:2]))

    def after(share):
        copy = Llama(base.config)
        copy.load_state_dict(base.state_dict())
        settings = replace(SETTINGS, epochs=20.0, optim=Optim(lr=1e-2), replay=share)
        sft(copy, tokenizer, ROWS, settings, 0, CPU, documents=TEXTS)
        return sum(answer_loglikelihoods(copy, encoded, tokenizer.pad_token_id, CPU))

    assert after(1.0) > after(0.0) + 1.0


def test_a_conversation_longer_than_the_context_is_refused(tokenizer):
    with pytest.raises(LabError, match=r"conversation has \d+ tokens, the model's context is 8"):
        sft(model(tokenizer, 8), tokenizer, ROWS, SETTINGS, 0, CPU)
