"""The report's stages, in its order:

pretrain      2.1 to 2.3   next-token training on the corpus
sft           3.1          demonstrations, loss on the answers only
preferences   3.2.1        two answers sampled, one chosen, with a grade
reward        3.2.2        a helpfulness and a safety reward model
gate          3.2.3        which of the two decides, and whitening
rejection     3.2.3        the best of K answers, fine-tuned on
ppo           3.2.3        policy optimisation against the gated reward
gatt          3.3          Ghost Attention: an instruction held over many turns
rounds        3.2, 3.4     RLHF-V1 to V5
evaluate      3.4, 4       helpfulness, safety, truth, retention
"""
