package client

import (
	"bytes"
	"fmt"
	"math/bits"
	"strconv"
	"strings"

	"github.com/buildbarn/go-xdr/pkg/protocols/nfsv4"
	"github.com/buildbarn/go-xdr/pkg/runtime"
)

// bitmap4 is the bitmap of attribute numbers.
func bitmap4(numbers ...uint) []uint32 {
	var words []uint32
	for _, n := range numbers {
		for uint(len(words)) <= n/32 {
			words = append(words, 0)
		}
		words[n/32] |= 1 << (n % 32)
	}
	return words
}

var (
	infoBits4 = bitmap4(nfsv4.FATTR4_TYPE, nfsv4.FATTR4_SIZE, nfsv4.FATTR4_FSID, nfsv4.FATTR4_MODE, nfsv4.FATTR4_OWNER, nfsv4.FATTR4_OWNER_GROUP)
	// entryBits4 asks for the error of an entry too, which fails the whole
	// READDIR otherwise.
	entryBits4 = bitmap4(nfsv4.FATTR4_TYPE, nfsv4.FATTR4_RDATTR_ERROR)
	spaceBits4 = bitmap4(nfsv4.FATTR4_FILES_AVAIL, nfsv4.FATTR4_FILES_TOTAL, nfsv4.FATTR4_SPACE_AVAIL, nfsv4.FATTR4_SPACE_TOTAL)
	leaseBits4 = bitmap4(nfsv4.FATTR4_LEASE_TIME)
)

// directory4 are the attributes of anything that is a directory.
func directory4() nfsv4.Fattr4 {
	return nfsv4.Fattr4{Attrmask: bitmap4(nfsv4.FATTR4_TYPE), AttrVals: []byte{0, 0, 0, byte(nfsv4.NF4DIR)}}
}

// attributesOf4 sets what is not nil.
func attributesOf4(mode, uid, gid *uint32) (nfsv4.Fattr4, error) {
	var (
		numbers []uint
		values  bytes.Buffer
		parts   sequence
	)
	if mode != nil {
		numbers, parts = append(numbers, nfsv4.FATTR4_MODE), append(parts, words{*mode})
	}
	if uid != nil {
		numbers, parts = append(numbers, nfsv4.FATTR4_OWNER), append(parts, opaque(strconv.FormatUint(uint64(*uid), 10)))
	}
	if gid != nil {
		numbers, parts = append(numbers, nfsv4.FATTR4_OWNER_GROUP), append(parts, opaque(strconv.FormatUint(uint64(*gid), 10)))
	}
	_, err := parts.WriteTo(&values)
	return nfsv4.Fattr4{Attrmask: bitmap4(numbers...), AttrVals: values.Bytes()}, err
}

// attributes4 is what a server says of a file.
type attributes4 struct {
	mask  []uint32
	info  Info
	space Space
	lease uint32
}

func (a *attributes4) has(number uint) bool {
	return number/32 < uint(len(a.mask)) && a.mask[number/32]&(1<<(number%32)) != 0
}

// parseAttributes4 reads attributes, which stand in the order of their numbers.
func parseAttributes4(encoded *nfsv4.Fattr4) (*attributes4, error) {
	a := &attributes4{mask: encoded.Attrmask}
	r := bytes.NewReader(encoded.AttrVals)
	for i, word := range a.mask {
		for ; word != 0; word &= word - 1 {
			number := uint(i)*32 + uint(bits.TrailingZeros32(word))
			if err := a.parse(number, r); err != nil {
				return nil, fmt.Errorf("%w: attribute %d: %w", errGarbled, number, err)
			}
		}
	}
	return a, nil
}

func (a *attributes4) parse(number uint, r *bytes.Reader) (err error) {
	switch number {
	case nfsv4.FATTR4_TYPE:
		var kind int32
		kind, _, err = runtime.ReadInt(r)
		a.info.Type = typeOf(kind)
	case nfsv4.FATTR4_SIZE:
		a.info.Size, _, err = runtime.ReadUnsignedHyper(r)
	case nfsv4.FATTR4_FSID:
		if a.info.filesystem[0], _, err = runtime.ReadUnsignedHyper(r); err == nil {
			a.info.filesystem[1], _, err = runtime.ReadUnsignedHyper(r)
		}
	case nfsv4.FATTR4_LEASE_TIME:
		a.lease, _, err = runtime.ReadUnsignedInt(r)
	case nfsv4.FATTR4_RDATTR_ERROR:
		_, _, err = runtime.ReadUnsignedInt(r)
	case nfsv4.FATTR4_FILES_AVAIL:
		a.space.FreeFiles, _, err = runtime.ReadUnsignedHyper(r)
	case nfsv4.FATTR4_FILES_TOTAL:
		a.space.TotalFiles, _, err = runtime.ReadUnsignedHyper(r)
	case nfsv4.FATTR4_MODE:
		a.info.Mode, _, err = runtime.ReadUnsignedInt(r)
		a.info.Mode &= 0o7777
	case nfsv4.FATTR4_OWNER:
		a.info.UID, err = readOwner4(r)
	case nfsv4.FATTR4_OWNER_GROUP:
		a.info.GID, err = readOwner4(r)
	case nfsv4.FATTR4_SPACE_AVAIL:
		a.space.Free, _, err = runtime.ReadUnsignedHyper(r)
	case nfsv4.FATTR4_SPACE_TOTAL:
		a.space.Total, _, err = runtime.ReadUnsignedHyper(r)
	default:
		err = fmt.Errorf("not asked for")
	}
	return err
}

// nobody is who an owner is whose name means nothing here.
const nobody = 65534

// readOwner4 reads an owner, a number in all likelihood (RFC 7530, 5.9).
func readOwner4(r *bytes.Reader) (uint32, error) {
	text, _, err := runtime.ReadVariableLengthOpaque(r, maxMountPath)
	if err != nil {
		return 0, err
	}
	if id, err := strconv.ParseUint(string(text), 10, 32); err == nil {
		return uint32(id), nil
	}
	if name, _, _ := strings.Cut(string(text), "@"); name == "root" {
		return 0, nil
	}
	return nobody, nil
}
