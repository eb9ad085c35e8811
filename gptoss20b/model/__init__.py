"""The model: Megatron-Core's GPTModel with two interchangeable layer back ends."""
