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
	sqlstate = mer_take_sqlstate(r);
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
