from cluster.comparison import cache_files, compare_caches
from storage.hashing import canonical_json, seal


def manifest(**fields):
    return seal(canonical_json({"id": "abc", "source": {"path": "here"}, **fields}))


def a_cache():
    return {
        "requests/r/spec.json": b"{}",
        "requests/r/p.v0-2.json": b"record",
        "requests/r/p.v0-2.0123.tar": b"tar",
        "label_sets/i/manifest.json": manifest(),
        "label_sets/i/parts-1.parquet": b"table",
        "label_sets/i/class_means.block": b"means",
        "names/n.json": b"name",
    }


def differing(one, other):
    return {kind.kind: kind.differing for kind in compare_caches(one, other) if kind.differing}


def test_every_kind_of_file_is_compared():
    kinds = compare_caches(a_cache(), a_cache())
    assert sorted(kind.kind for kind in kinds) == [
        "class means", "label sets", "names", "parts", "records of parts", "requests", "tables of parts"
    ]  # fmt: skip
    assert all(kind.num_files == 1 and not kind.differing for kind in kinds)


def test_any_other_byte_is_found_under_its_kind():
    for name in a_cache():
        changed = {**a_cache(), name: a_cache()[name] + b"x"}
        ((_, names),) = differing(a_cache(), changed).items()
        assert names == (name,)


def test_what_only_one_has_is_found():
    more = {**a_cache(), "requests/r/q.v0-2.99.tar": b"tar"}
    assert differing(a_cache(), more) == differing(more, a_cache()) == {"parts": ("requests/r/q.v0-2.99.tar",)}


def test_where_the_source_lay_is_no_difference_but_all_else_of_a_label_set_is():
    elsewhere = {**a_cache(), "label_sets/i/manifest.json": manifest(source={"path": "s3://there"})}
    assert differing(a_cache(), elsewhere) == {}
    another = {**a_cache(), "label_sets/i/manifest.json": manifest(num_rows=1)}
    assert differing(a_cache(), another) == {"label sets": ("label_sets/i/manifest.json",)}


def test_a_digest_covers_names_and_bytes():
    (before,) = (kind.digest for kind in compare_caches(a_cache(), a_cache()) if kind.kind == "parts")
    for changed in ({"requests/r/p.v0-2.0123.tar": b"other"}, {"requests/r/q.tar": b"tar"}):
        other = {name: data for name, data in a_cache().items() if not name.endswith(".tar")} | changed
        (after,) = (kind.digest for kind in compare_caches(other, other) if kind.kind == "parts")
        assert after != before


def test_memos_and_runs_are_not_looked_at(tmp_path):
    for name in ("requests/r/spec.json", "names/n.json", "sources/memo.json", "runs/1/times/a.json", "requests/r/.partial"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert set(cache_files(tmp_path)) == {"requests/r/spec.json", "names/n.json"}
