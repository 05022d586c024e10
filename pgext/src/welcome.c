/*
 * welcome.c
 *	  What the gateway says when a backend connects, its profile and limits;
 *	  and the numbers that it leases.
 */
#include "wire.h"

#define LIMITS_MAX 64
#define LIMIT_NAME_BYTES 64

typedef struct MerLimit
{
	char		name[LIMIT_NAME_BYTES];
	int64		value;
} MerLimit;

static char profile[16] = "";
static int	nlimits = 0;
static MerLimit limits[LIMITS_MAX];

static void
read_limits(MpReader *r)
{
	uint32		n = mp_get_map(r);

	nlimits = 0;
	while (n-- > 0)
	{
		uint32		len;
		const char *name = mp_get_bytes(r, &len);
		int64		value = mp_get_int(r);

		if (nlimits == LIMITS_MAX || len >= LIMIT_NAME_BYTES)
			mp_malformed("limits map too large");
		memcpy(limits[nlimits].name, name, len);
		limits[nlimits].name[len] = '\0';
		limits[nlimits++].value = value;
	}
}

void
mer_welcome_read(MpReader *r)
{
	uint32		len;
	const char *name;

	if (mp_get_int(r) != MER_PROTOCOL_VERSION)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the gateway speaks another protocol version")));
	name = mp_get_bytes(r, &len);
	if (len >= sizeof(profile))
		mp_malformed("profile name too long");
	memcpy(profile, name, len);
	profile[len] = '\0';
	read_limits(r);
}

const char *
mer_profile(void)
{
	if (profile[0] == '\0')
		mer_wire_ensure();
	return profile;
}

int64
mer_limit(const char *name)
{
	int			i;

	if (nlimits == 0)
		mer_wire_ensure();
	for (i = 0; i < nlimits; i++)
		if (strcmp(limits[i].name, name) == 0)
			return limits[i].value;
	elog(ERROR, "the gateway sent no limit \"%s\"", name);
}

int64
mer_lease(int kind, int count, int64 *first)
{
	StringInfoData buf;
	uint32		id;
	MerReply	reply;
	int64		granted;

	initStringInfo(&buf);
	id = mer_wire_begin(&buf, MER_LEASE, 4);
	mp_put_int(&buf, kind);
	mp_put_int(&buf, count);
	reply = mer_wire_call(&buf, id);
	if (reply.type != MER_LEASED)
		mp_malformed("not an answer to LEASE");
	*first = mp_get_int(&reply.body);
	granted = mp_get_int(&reply.body);
	if (granted < 1 || granted > count)
		mp_malformed("lease of another size");
	pfree(reply.frame);
	pfree(buf.data);
	return granted;
}
