/*
 * frames.c
 *	  COMMIT, PART and STATUS as the gateway reads them, and what of an ERROR
 *	  answer decides how a commit goes on (docs/protocol.md).
 *
 * No server is needed here: the simulation links this file, too (writelib.c).
 */
#include "wire.h"

#include "store.h"

#define COMMIT_HAS_SCHEMA 1
#define COMMIT_HAS_PARTS 2

void
mer_frame_part(StringInfo buf, uint32 id, const char *txid, uint32 seq, StringInfo chunk,
			   int64 tau)
{
	mer_proto_begin(buf, MER_PART, id, 6);
	mp_put_bin(buf, txid, MER_TXID_BYTES);
	mp_put_int(buf, seq);
	mp_put_bin(buf, chunk->data, chunk->len);
	mp_put_int(buf, tau);
}

/* The last chunk, after `parts` PART frames; mer_encode has counted the rows. */
void
mer_frame_commit(StringInfo buf, uint32 id, const char *txid, int64 catver, uint32 parts,
				 StringInfo chunk)
{
	bool		schema = mer_txn_schema_count() > 0 || mer_buf_find(1) != NULL;

	mer_proto_begin(buf, MER_COMMIT, id, 8);
	mp_put_int(buf, catver);
	mp_put_int(buf, mer_txn.tau);
	mp_put_bin(buf, txid, MER_TXID_BYTES);
	mp_put_int(buf, (schema ? COMMIT_HAS_SCHEMA : 0) | (parts > 0 ? COMMIT_HAS_PARTS : 0));
	mp_put_int(buf, mer_txn.rows);
	mp_put_bin(buf, chunk->data, chunk->len);
}

void
mer_frame_status(StringInfo buf, uint32 id, const char *txid, int64 tau)
{
	mer_proto_begin(buf, MER_STATUS, id, 4);
	mp_put_bin(buf, txid, MER_TXID_BYTES);
	mp_put_int(buf, tau);
}

int
mer_wire_sqlstate(const MerReply *reply)
{
	MpReader	r = reply->body;

	mp_skip(&r);				/* our error code */
	return mer_take_sqlstate(&r);
}
