"""The kernel's numbers under the kernel's names, each table with the header it comes from."""

from typing import Final

# include/uapi/linux/socket.h, asm-generic/socket.h
SO_MEMINFO: Final = 55
SO_SNDBUFFORCE: Final = 32
SO_RCVBUFFORCE: Final = 33
SO_ATTACH_FILTER: Final = 26
SO_DETACH_FILTER: Final = 27
SO_LOCK_FILTER: Final = 44
SO_NETNS_COOKIE: Final = 71  # u64, Linux 5.14

# include/uapi/linux/sock_diag.h: the words that SO_MEMINFO returns, each a u32
SK_MEMINFO_RMEM_ALLOC: Final = 0  # bytes queued
SK_MEMINFO_RCVBUF: Final = 1
SK_MEMINFO_DROPS: Final = 8
SK_MEMINFO_VARS: Final = 9

# include/linux/socket.h
SOL_NETLINK: Final = 270
MSG_TRUNC: Final = 0x20

# include/uapi/linux/netlink.h
NETLINK_NETFILTER: Final = 12
NETLINK_ADD_MEMBERSHIP: Final = 1
NETLINK_DROP_MEMBERSHIP: Final = 2
NETLINK_BROADCAST_ERROR: Final = 4
NETLINK_NO_ENOBUFS: Final = 5
NETLINK_LIST_MEMBERSHIPS: Final = 9
NLMSG_NOOP: Final = 1
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
NLMSG_MIN_TYPE: Final = 0x10  # below it are control messages of netlink itself
NLM_F_REQUEST: Final = 0x01
NLM_F_MULTI: Final = 0x02
NLM_F_ACK: Final = 0x04
NLM_F_DUMP: Final = 0x300
NLM_F_EXCL: Final = 0x200  # in a NEW request
NLM_F_CREATE: Final = 0x400
NLM_F_APPEND: Final = 0x800
NLMSG_HDRLEN: Final = 16
NLA_F_NESTED: Final = 0x8000
NLA_TYPE_MASK: Final = 0x3FFF
NLA_HDRLEN: Final = 4

# include/uapi/linux/netfilter/nfnetlink.h
NFNETLINK_V0: Final = 0
NFNL_SUBSYS_CTNETLINK: Final = 1
NFNL_SUBSYS_NFTABLES: Final = 10
NFNL_SUBSYS_HOOK: Final = 12
NFNL_MSG_BATCH_BEGIN: Final = 16
NFNL_MSG_BATCH_END: Final = 17
NFGENMSG_LEN: Final = 4

# include/uapi/linux/netfilter/nf_tables.h
NFT_MSG_NEWTABLE: Final = 0
NFT_MSG_GETTABLE: Final = 1
NFT_MSG_DELTABLE: Final = 2
NFT_MSG_NEWCHAIN: Final = 3
NFT_MSG_NEWRULE: Final = 6
NFT_MSG_GETRULE: Final = 7
NFT_MSG_NEWGEN: Final = 15
NFT_TABLE_F_OWNER: Final = 0x2  # Linux 5.12
NFTA_TABLE_NAME: Final = 1  # string
NFTA_TABLE_FLAGS: Final = 2  # u32
NFTA_TABLE_USERDATA: Final = 6
NFTA_TABLE_OWNER: Final = 7  # port id, u32
NFTA_CHAIN_TABLE: Final = 1  # string
NFTA_CHAIN_NAME: Final = 3  # string
NFTA_RULE_TABLE: Final = 1  # string
NFTA_RULE_CHAIN: Final = 2  # string
NFTA_RULE_EXPRESSIONS: Final = 4  # nested, NFTA_LIST_ELEM
NFTA_LIST_ELEM: Final = 1  # nested
NFTA_EXPR_NAME: Final = 1  # string
NFTA_EXPR_DATA: Final = 2  # nested
NFTA_DATA_VALUE: Final = 1
NFTA_DATA_VERDICT: Final = 2  # nested
NFTA_VERDICT_CODE: Final = 1  # s32
NFTA_CT_DREG: Final = 1  # u32
NFTA_CT_KEY: Final = 2  # u32, enum nft_ct_keys
NFTA_BITWISE_SREG: Final = 1  # u32
NFTA_BITWISE_DREG: Final = 2  # u32
NFTA_BITWISE_LEN: Final = 3  # u32
NFTA_BITWISE_MASK: Final = 4  # nested, nft_data_attributes
NFTA_BITWISE_XOR: Final = 5  # nested, nft_data_attributes
NFTA_CMP_SREG: Final = 1  # u32
NFTA_CMP_OP: Final = 2  # u32, enum nft_cmp_ops
NFTA_CMP_DATA: Final = 3  # nested, nft_data_attributes
NFTA_IMMEDIATE_DREG: Final = 1  # u32
NFTA_IMMEDIATE_DATA: Final = 2  # nested, nft_data_attributes
NFT_REG_VERDICT: Final = 0
NFT_REG_1: Final = 1
NFT_CT_STATE: Final = 0
NFT_CT_STATE_NEW_BIT: Final = 8  # NF_CT_STATE_BIT(IP_CT_NEW)
NFT_CMP_NEQ: Final = 1
NFT_CONTINUE: Final = 0xFFFFFFFF  # enum nft_verdicts, -1

# include/uapi/linux/netfilter/nfnetlink_hook.h
NFNL_MSG_HOOK_GET: Final = 0
NFNLA_HOOK_HOOKNUM: Final = 1  # u32

# include/uapi/linux/netfilter/nfnetlink_compat.h, enum nfnetlink_groups
NFNLGRP_CONNTRACK_NEW: Final = 1
NFNLGRP_CONNTRACK_UPDATE: Final = 2
NFNLGRP_CONNTRACK_DESTROY: Final = 3
NFNLGRP_NFTABLES: Final = 7

# include/uapi/linux/netfilter/nfnetlink_conntrack.h, enum cntl_msg_types
IPCTNL_MSG_CT_NEW: Final = 0
IPCTNL_MSG_CT_GET: Final = 1
IPCTNL_MSG_CT_DELETE: Final = 2
IPCTNL_MSG_CT_GET_STATS_CPU: Final = 4
IPCTNL_MSG_CT_GET_STATS: Final = 5

# enum ctattr_type
CTA_TUPLE_ORIG: Final = 1  # nested, ctattr_tuple
CTA_TUPLE_REPLY: Final = 2  # nested, ctattr_tuple
CTA_STATUS: Final = 3  # IPS_* bits, u32
CTA_PROTOINFO: Final = 4  # nested, ctattr_protoinfo
CTA_HELP: Final = 5  # nested, ctattr_help
CTA_TIMEOUT: Final = 7  # seconds left, u32
CTA_MARK: Final = 8  # u32
CTA_COUNTERS_ORIG: Final = 9  # nested, ctattr_counters
CTA_COUNTERS_REPLY: Final = 10  # nested, ctattr_counters
CTA_ID: Final = 12  # u32
CTA_TUPLE_MASTER: Final = 14  # nested, ctattr_tuple
CTA_ZONE: Final = 18  # u16
CTA_SECCTX: Final = 19  # nested, ctattr_secctx
CTA_TIMESTAMP: Final = 20  # nested, ctattr_tstamp
CTA_LABELS: Final = 22  # bits, 16 bytes
CTA_TIMESTAMP_EVENT: Final = 27  # ns since the epoch, u64; Linux 6.14

# enum ctattr_help, ctattr_secctx
CTA_HELP_NAME: Final = 1
CTA_SECCTX_NAME: Final = 1

# enum ctattr_tuple
CTA_TUPLE_IP: Final = 1  # nested, ctattr_ip
CTA_TUPLE_PROTO: Final = 2  # nested, ctattr_l4proto
CTA_TUPLE_ZONE: Final = 3  # u16

# enum ctattr_ip
CTA_IP_V4_SRC: Final = 1
CTA_IP_V4_DST: Final = 2
CTA_IP_V6_SRC: Final = 3
CTA_IP_V6_DST: Final = 4

# enum ctattr_l4proto
CTA_PROTO_NUM: Final = 1  # u8
CTA_PROTO_SRC_PORT: Final = 2  # u16; for GRE the source key
CTA_PROTO_DST_PORT: Final = 3  # u16; for GRE the destination key
CTA_PROTO_ICMP_ID: Final = 4
CTA_PROTO_ICMP_TYPE: Final = 5  # u8
CTA_PROTO_ICMP_CODE: Final = 6  # u8
CTA_PROTO_ICMPV6_ID: Final = 7
CTA_PROTO_ICMPV6_TYPE: Final = 8  # u8
CTA_PROTO_ICMPV6_CODE: Final = 9  # u8

# enum ctattr_protoinfo, ctattr_protoinfo_tcp
CTA_PROTOINFO_TCP: Final = 1  # nested, ctattr_protoinfo_tcp
CTA_PROTOINFO_TCP_STATE: Final = 1  # u8, enum tcp_conntrack

# enum ctattr_counters
CTA_COUNTERS_PACKETS: Final = 1  # u64
CTA_COUNTERS_BYTES: Final = 2  # u64

# enum ctattr_tstamp
CTA_TIMESTAMP_START: Final = 1  # ns since the epoch, u64
CTA_TIMESTAMP_STOP: Final = 2  # ns since the epoch, u64

# enum ctattr_stats_global
CTA_STATS_GLOBAL_ENTRIES: Final = 1  # u32
CTA_STATS_GLOBAL_MAX_ENTRIES: Final = 2  # u32

# enum ctattr_stats_cpu, each a u32 of one CPU; numbers that are not here are of older kernels
CTA_STATS_FOUND: Final = 2
CTA_STATS_INVALID: Final = 4
CTA_STATS_INSERT: Final = 8
CTA_STATS_INSERT_FAILED: Final = 9
CTA_STATS_DROP: Final = 10
CTA_STATS_EARLY_DROP: Final = 11
CTA_STATS_ERROR: Final = 12
CTA_STATS_SEARCH_RESTART: Final = 13
CTA_STATS_CLASH_RESOLVE: Final = 14  # Linux 5.9
CTA_STATS_CHAIN_TOOLONG: Final = 15  # Linux 5.15
