package directory

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// The entries of a POSIX access control list, as acl(5) and the kernel number them.
const (
	aclVersion  = 2
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
)

// aclEntry says what somebody may do: id counts for aclUser and aclGroup.
type aclEntry struct {
	tag, may uint16
	id       uint32
}

var errAccessList = errors.New("not an access control list")

// parseAccessList reads an access control list as Linux has it in an extended
// attribute.
func parseAccessList(data []byte) ([]aclEntry, error) {
	const header, length = 4, 8
	if len(data) < header || (len(data)-header)%length != 0 || binary.LittleEndian.Uint32(data) != aclVersion {
		return nil, errAccessList
	}
	var list []aclEntry
	for data = data[header:]; len(data) > 0; data = data[length:] {
		list = append(list, aclEntry{
			tag: binary.LittleEndian.Uint16(data), may: binary.LittleEndian.Uint16(data[2:]), id: binary.LittleEndian.Uint32(data[4:]),
		})
	}
	return list, nil
}

// beyondMode says what an access control list gives beside the mode of its directory,
// and takes away from it. What it gives to somebody counts even if its mask withholds
// that for now: the mask goes with the mode, which kubelet changes for a pod's fsGroup.
func beyondMode(list []aclEntry, got Info) []string {
	const all = 7
	others, group := uint16(got.Mode&all), uint16(got.Mode>>3&all)
	mask := uint16(all)
	for _, e := range list {
		if e.tag == aclMask {
			mask = e.may
		}
	}
	var beyond []string
	for _, e := range list {
		who, has := "", others
		switch {
		case e.tag == aclGroupObj && group&^e.may != 0:
			beyond = append(beyond, fmt.Sprintf("group %s instead of %s by its access control list", mayText(e.may&mask), mayText(group)))
		case e.tag == aclUser && e.id != got.UID:
			who = "user"
		case e.tag == aclGroup:
			who = "group"
			if e.id == got.GID {
				has |= group
			}
		}
		if who == "" || e.may&^has == 0 {
			continue
		}
		text := fmt.Sprintf("%s for %s %d by its access control list", mayText(e.may), who, e.id)
		if e.may&mask&^has != 0 {
			text += " (wider)"
		}
		beyond = append(beyond, text)
	}
	return beyond
}

// maxBeyond is how many entries of a list are told: an event has room for so many.
const maxBeyond = 4

// unlikeByList says what an access control list of dir makes different from its mode.
// That one can't be read is told too: it may give anything.
func unlikeByList(dir Dir, got Info) []string {
	data, err := readAccessList(dir)
	if err != nil {
		return []string{fmt.Sprintf("an access control list that can't be read (%v)", err)}
	}
	if data == nil {
		return nil
	}
	list, err := parseAccessList(data)
	if err != nil {
		return []string{fmt.Sprintf("an access control list that can't be read (%v)", err)}
	}
	beyond := beyondMode(list, got)
	if more := len(beyond) - maxBeyond; more > 0 {
		beyond = append(beyond[:maxBeyond], fmt.Sprintf("and %d more", more))
	}
	return beyond
}

// mayText writes three bits as ls does.
func mayText(may uint16) string {
	text := strings.Builder{}
	for i, letter := range "rwx" {
		if may&(4>>i) == 0 {
			letter = '-'
		}
		text.WriteRune(letter)
	}
	return text.String()
}
