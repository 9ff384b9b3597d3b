"""What a Llama 2 is: tokenizer, RoPE, attention, the network, the chat format, generation (section 2.2)."""
