/*
 * wireerror.c
 *	  ERROR answers of the gateway as errors of this server.
 */
#include "wire.h"

#include "mb/pg_wchar.h"

static char *
take_text(MpReader *r)
{
	uint32		len;
	const char *text = mp_get_bytes(r, &len);

	if (!pg_verify_mbstr(GetDatabaseEncoding(), text, (int) len, true))
		mp_malformed("text is not in the database's encoding");
	return pnstrdup(text, len);
}

static int
take_sqlstate(MpReader *r)
{
	uint32		len;
	const char *state = mp_get_bytes(r, &len);

	if (len != 5)
		mp_malformed("SQLSTATE of another length");
	return MAKE_SQLSTATE(state[0], state[1], state[2], state[3], state[4]);
}

int
mer_wire_sqlstate(const MerReply *reply)
{
	MpReader	r = reply->body;

	mp_skip(&r);				/* our error code */
	return take_sqlstate(&r);
}

void
mer_wire_raise(MerReply *reply)
{
	MpReader   *r = &reply->body;
	int			sqlstate;
	char	   *message;
	char	   *detail;
	char	   *hint;

	Assert(reply->type == MER_ERROR);
	mp_skip(r);
	sqlstate = take_sqlstate(r);
	message = take_text(r);
	detail = take_text(r);
	hint = take_text(r);
	pfree(reply->frame);
	ereport(ERROR,
			(errcode(sqlstate),
			 errmsg_internal("%s", message),
			 detail[0] ? errdetail_internal("%s", detail) : 0,
			 hint[0] ? errhint("%s", hint) : 0));
}
