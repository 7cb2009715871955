from distmoe.tokenization import build_word_tokenizer, fingerprint, load_tokenizer


def test_pairs_get_special_tokens_and_segments():
    tokenizer = build_word_tokenizer(["sun", "moon"])
    # [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4, then the words
    encoded = tokenizer("Sun moon", "stone")
    assert encoded["input_ids"] == [2, 5, 6, 3, 1, 3]
    assert encoded["token_type_ids"] == [0, 0, 0, 0, 1, 1]


def test_it_survives_save_and_load(tmp_path):
    tokenizer = build_word_tokenizer(["sun", "moon"])
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded("sun", "moon")["input_ids"] == [2, 5, 3, 6, 3]
    assert loaded.pad_token_id == 0
    assert fingerprint(loaded) == fingerprint(tokenizer)
