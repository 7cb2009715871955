import torch

from distmoe.nn.embeddings import EncoderEmbeddings


def _embeddings(offset: int, num_token_types: int = 2) -> EncoderEmbeddings:
    embeddings = EncoderEmbeddings(
        vocab_size=11,
        max_positions=6,
        num_token_types=num_token_types,
        hidden_size=4,
        position_offset=offset,
        layer_norm_eps=1e-12,
        dropout=0.0,
    )
    embeddings.reset(0, "embeddings", 0.5)
    return embeddings


def _positions(embeddings: EncoderEmbeddings, mask: list[list[int]]) -> list[list[int]]:
    """Reads off which position rows are used, by making every other table zero."""
    mask_BS = torch.tensor(mask).bool()
    with torch.no_grad():
        embeddings.word.weight.zero_()
        embeddings.token_type.weight.zero_()
        embeddings.norm = torch.nn.Identity()  # type: ignore[assignment]
        embeddings.position.weight.copy_(torch.arange(float(embeddings.position.num_embeddings))[:, None].expand(-1, 4))
    ids = torch.zeros_like(mask_BS, dtype=torch.long)
    rows = embeddings(ids, mask_BS, ids)[..., 0]
    return rows.expand(mask_BS.shape).long().tolist()


def test_bert_counts_positions_from_the_left_edge() -> None:
    assert _positions(_embeddings(0), [[1, 1, 1, 0], [0, 1, 1, 1]]) == [[0, 1, 2, 3], [0, 1, 2, 3]]


def test_roberta_counts_real_tokens_from_pad_id_plus_one_and_gives_padding_the_pad_row() -> None:
    # pad id 1: the first token reads row 2, padding reads row 1.
    assert _positions(_embeddings(2), [[1, 1, 1, 0], [0, 1, 1, 1]]) == [[2, 3, 4, 1], [1, 2, 3, 4]]


def test_position_table_holds_the_longest_sequence() -> None:
    assert _positions(_embeddings(2), [[1] * 6]) == [[2, 3, 4, 5, 6, 7]]


def test_a_single_segment_row_serves_every_segment_id() -> None:
    embeddings, ids = _embeddings(0, num_token_types=1), torch.tensor([[3, 4, 5]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    with_ids = embeddings(ids, mask, torch.tensor([[0, 1, 1]]))
    assert torch.equal(with_ids, embeddings(ids, mask, torch.zeros_like(ids)))
