/*
 * tid.c
 *	  TIDs: numbers of versions, for one transaction.
 *
 * Number n is block n/256, offset n%256 + 1 (bitmaps need small offsets).
 * One version has one number, and one number names one version, so that
 * comparing ctids means comparing row versions.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "storage/itemptr.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "store.h"

#define ROWS_PER_BLOCK 256

/* What a registered key costs besides its bytes. */
#define KEY_OVERHEAD (sizeof(MerVersion) + sizeof(StoredEntry) + 32)

/* Given to rows whose TID nobody may use. */
#define NO_TID_BLOCK ((BlockNumber) 0xFFFFFF00)

typedef struct StoredKey
{
	int64		sid;
	const char *key;
	uint32		len;
} StoredKey;

typedef struct StoredEntry
{
	StoredKey	key;
	MerVersion *version;
} StoredEntry;

static MerVersion **versions;
static uint64 nversions;
static uint64 maxversions;
static HTAB *stored;
static uint64 stored_bytes;

static uint32
stored_hash(const void *key, Size size)
{
	const StoredKey *k = key;

	return hash_combine(hash_bytes((const unsigned char *) k->key, k->len),
						hash_bytes_uint32((uint32) k->sid));
}

static int
stored_match(const void *a, const void *b, Size size)
{
	const StoredKey *x = a;
	const StoredKey *y = b;

	return !(x->sid == y->sid && x->len == y->len && memcmp(x->key, y->key, x->len) == 0);
}

static void
number_to_tid(uint64 number, ItemPointer tid)
{
	ItemPointerSet(tid, (BlockNumber) (number / ROWS_PER_BLOCK),
				   (OffsetNumber) (number % ROWS_PER_BLOCK + 1));
}

static void
tid_register(MerVersion *version)
{
	if (nversions == maxversions)
	{
		mer_txn_start();
		maxversions = maxversions ? maxversions * 2 : 1024;
		if (versions == NULL)
			versions = MemoryContextAllocHuge(TopMemoryContext,
											  maxversions * sizeof(MerVersion *));
		else
			versions = repalloc_huge(versions, maxversions * sizeof(MerVersion *));
		if (nversions == 0)
			nversions = 1;		/* 0 means "none" */
	}
	if (nversions / ROWS_PER_BLOCK >= NO_TID_BLOCK)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("transaction touches too many rows")));
	versions[nversions] = version;
	version->tid = nversions++;
}

void
mer_tid_assign(MerVersion *version, ItemPointer tid)
{
	if (version->tid == 0)
		tid_register(version);
	number_to_tid(version->tid, tid);
}

void
mer_tid_none(ItemPointer tid)
{
	ItemPointerSet(tid, NO_TID_BLOCK, 1);
}

MerVersion *
mer_tid_lookup(ItemPointer tid)
{
	BlockNumber block = ItemPointerGetBlockNumberNoCheck(tid);
	OffsetNumber offset = ItemPointerGetOffsetNumberNoCheck(tid);
	uint64		number;

	if (offset < 1 || offset > ROWS_PER_BLOCK)
		return NULL;
	number = (uint64) block * ROWS_PER_BLOCK + offset - 1;
	return number > 0 && number < nversions ? versions[number] : NULL;
}

MerVersion *
mer_tid_version(ItemPointer tid)
{
	MerVersion *version = mer_tid_lookup(tid);

	if (version == NULL)
		elog(ERROR, "meridian: row version (%u,%u) is not known to this transaction",
			 ItemPointerGetBlockNumberNoCheck(tid),
			 ItemPointerGetOffsetNumberNoCheck(tid));
	return version;
}

MerVersion *
mer_tid_stored(int64 sid, const char *key, uint32 klen, const char *row,
			   uint32 rowlen, const MerShape *shape)
{
	StoredKey	probe = {sid, key, klen};
	StoredEntry *entry;
	MerVersion *v;
	char	   *bytes;
	bool		found;

	mer_txn_start();
	if (stored == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(StoredKey), .entrysize = sizeof(StoredEntry),
			.hash = stored_hash, .match = stored_match,
		.hcxt = mer_txn.cxt};

		stored = hash_create("meridian stored versions", 256, &ctl,
							 HASH_ELEM | HASH_FUNCTION | HASH_COMPARE | HASH_CONTEXT);
	}
	entry = hash_search(stored, &probe, HASH_ENTER, &found);
	if (found)
	{
		v = entry->version;
		if (v->row || row == NULL)
			return v;
	}
	else
	{
		v = MemoryContextAllocZero(mer_txn.cxt, sizeof(MerVersion) + klen);
		bytes = (char *) (v + 1);
		memcpy(bytes, key, klen);
		v->key = bytes;
		v->klen = klen;
		v->sid = sid;
		entry->key.key = bytes;
		entry->version = v;
		tid_register(v);
		stored_bytes += klen + KEY_OVERHEAD;
		if (stored_bytes > (uint64) mer_limit("query_memory_bytes"))
			ereport(ERROR,
					(errcode(ERRCODE_OUT_OF_MEMORY),
					 errmsg("transaction keeps more rows than its memory allows"),
					 errhint("Change or lock fewer rows per transaction.")));
		if (row == NULL)
			return v;
	}
	stored_bytes += rowlen;
	bytes = MemoryContextAlloc(mer_txn.cxt, Max(rowlen, 1));
	memcpy(bytes, row, rowlen);
	v->row = bytes;
	v->rowlen = rowlen;
	v->shape = shape;
	return v;
}

/* Lets the key of an entry of a unique index find a stored version, too. */
void
mer_tid_link(int64 index_sid, const char *key, uint32 klen, MerVersion *row)
{
	StoredKey	probe = {index_sid, key, klen};
	StoredEntry *entry;
	char	   *bytes;

	Assert(stored != NULL && row->row != NULL);
	if (mer_tids_full() || hash_search(stored, &probe, HASH_FIND, NULL))
		return;
	bytes = MemoryContextAlloc(mer_txn.cxt, Max(klen, 1));
	memcpy(bytes, key, klen);
	probe.key = bytes;
	entry = hash_search(stored, &probe, HASH_ENTER, NULL);
	entry->version = row;
	stored_bytes += klen + KEY_OVERHEAD;
}

/*
 * A stored version that was read before, with its row; NULL if there is none.
 * As of one tau_start it is what storage would answer again.
 */
MerVersion *
mer_tid_find_stored(int64 sid, const char *key, uint32 klen)
{
	StoredKey	probe = {sid, key, klen};
	StoredEntry *entry;

	if (stored == NULL)
		return NULL;
	entry = hash_search(stored, &probe, HASH_FIND, NULL);
	return entry && entry->version->row ? entry->version : NULL;
}

bool
mer_tids_full(void)
{
	return stored_bytes > (uint64) mer_limit("query_memory_bytes") / 4;
}

/* The transaction has ended; its memory is about to go. */
void
mer_tids_reset(void)
{
	stored = NULL;
	stored_bytes = 0;
	nversions = nversions ? 1 : 0;
	if (maxversions > 65536)
	{
		pfree(versions);
		versions = NULL;
		maxversions = 0;
		nversions = 0;
	}
}
