package directory_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// entry is one of an access control list: what sort, whom, and what they may do.
type entry struct {
	tag, may uint16
	id       uint32
}

// The sorts of entries, as the kernel numbers them.
const (
	userObj, user, groupObj, group, mask, other = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20

	nobodyInParticular = ^uint32(0)
)

// setDefaultList is `setfacl -d` with an entry for the owner, the group, others, the
// mask, and those given.
func setDefaultList(t *testing.T, dir string, groupMay uint16, named ...entry) {
	t.Helper()
	list := slices.Concat(named, []entry{
		{userObj, 7, nobodyInParticular}, {groupObj, groupMay, nobodyInParticular},
		{mask, 7, nobodyInParticular}, {other, 5, nobodyInParticular},
	})
	slices.SortFunc(list, func(a, b entry) int { return int(a.tag) - int(b.tag) })
	data := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range list {
		data = binary.LittleEndian.AppendUint16(data, e.tag)
		data = binary.LittleEndian.AppendUint16(data, e.may)
		data = binary.LittleEndian.AppendUint32(data, e.id)
	}
	err := unix.Setxattr(dir, "system.posix_acl_default", data, 0)
	if errors.Is(err, unix.ENOTSUP) {
		t.Skip("this filesystem has no access control lists")
	}
	must(t, err)
}

// The pool's directory has a default access control list, which mkdir gives to each
// volume. Its mode does not say so.
func TestAccessControlListThatAVolumeInheritsIsTold(t *testing.T) {
	for name, c := range map[string]struct {
		mode     uint32
		groupMay uint16
		named    []entry
		want     string
	}{
		"a user":                       {0o770, 7, []entry{{user, 7, 1234}}, "rwx for user 1234 by its access control list (wider)"},
		"a user may read":              {0o770, 7, []entry{{user, 5, 1234}}, "r-x for user 1234 by its access control list (wider)"},
		"a group":                      {0o770, 7, []entry{{group, 7, 1235}}, "rwx for group 1235 by its access control list (wider)"},
		"several":                      {0o770, 7, []entry{{user, 7, 1234}, {group, 4, 1235}}, "rwx for user 1234 by its access control list (wider), r-- for group 1235 by its access control list (wider)"},
		"the mask withholds it":        {0o700, 7, []entry{{user, 7, 1234}}, "rwx for user 1234 by its access control list"},
		"the mask withholds a part":    {0o750, 7, []entry{{user, 7, 1234}}, "rwx for user 1234 by its access control list (wider)"},
		"no more than everybody":       {0o777, 7, []entry{{user, 7, 1234}, {group, 5, 1235}}, ""},
		"nobody in particular":         {0o770, 7, nil, ""},
		"a user who may not":           {0o770, 7, []entry{{user, 0, 1234}}, ""},
		"the group may less":           {0o770, 5, nil, "group r-x instead of rwx by its access control list"},
		"the owner":                    {0o770, 7, []entry{{user, 7, uint32(os.Geteuid())}}, ""},
		"the group, as everybody else": {0o770, 7, []entry{{group, 7, uint32(os.Getegid())}}, ""},
	} {
		for _, path := range []string{"vol", "team/app/vol"} {
			t.Run(name+", "+path, func(t *testing.T) {
				b := newBench(t)
				setDefaultList(t, b.base, c.groupMay, c.named...)
				spec := specFor(path)
				spec.Mode = c.mode
				m := b.create(spec)
				if m.Rights != c.want {
					t.Errorf("told %q, want %q", m.Rights, c.want)
				}
				if m = b.create(spec); m.Rights != c.want { // the answer was lost
					t.Errorf("told %q when asked again, want %q", m.Rights, c.want)
				}
				if n, err := unix.Getxattr(b.path(path), "system.posix_acl_access", nil); err != nil || n == 0 {
					t.Errorf("the list was removed: %d, %v", n, err)
				}
				info, err := os.Stat(b.path(path))
				must(t, err)
				if got := uint32(info.Mode().Perm()); got != c.mode {
					t.Errorf("mode %04o", got)
				}
				b.pool.Close()
			})
		}
	}
}

// An event has room for some only.
func TestLongAccessControlListIsToldInShort(t *testing.T) {
	b := newBench(t)
	var named []entry
	for i := range uint32(100) {
		named = append(named, entry{user, 7, 2000 + i})
	}
	setDefaultList(t, b.base, 7, named...)
	spec := specFor("vol")
	spec.Mode = 0o770
	m := b.create(spec)
	wantWords(t, fmt.Errorf("%s", m.Rights), "user 2000", "and 96 more")
	if len(m.Rights) > 400 {
		t.Errorf("told %d bytes", len(m.Rights))
	}
}
