package keyfile

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"
)

const (
	beginPublic = "---- BEGIN SSH2 PUBLIC KEY ----"
	endPublic   = "---- END SSH2 PUBLIC KEY ----"
)

// ParsePublic reads a public key or a certificate: one line in OpenSSH's format, or
// the format of RFC 4716. The comment may be empty.
func ParsePublic(text []byte) (key ssh.PublicKey, comment string, err error) {
	if bytes.HasPrefix(bytes.TrimSpace(text), []byte(beginPublic)) {
		return parseRFC4716(string(text))
	}
	key, comment, _, _, err = ssh.ParseAuthorizedKey(text)
	if err != nil {
		return nil, "", errors.New("neither an OpenSSH public key nor one of RFC 4716")
	}
	return key, comment, nil
}

// ParseInline reads a public key as a configuration holds it: what ParsePublic takes,
// or the bare base64 of the key, which may be broken into lines.
func ParseInline(text string) (ssh.PublicKey, error) {
	if key, _, err := ParsePublic([]byte(text)); err == nil {
		return key, nil
	}
	blob, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(text), ""))
	if err == nil {
		var key ssh.PublicKey
		if key, err = ssh.ParsePublicKey(blob); err == nil {
			return key, nil
		}
	}
	return nil, errors.New("neither a public key nor the base64 of one")
}

func parseRFC4716(text string) (key ssh.PublicKey, comment string, err error) {
	var body, header strings.Builder
	inside, ended, more := false, false, false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		switch {
		case strings.HasPrefix(line, beginPublic):
			inside = true
		case strings.HasPrefix(line, endPublic):
			ended = inside
		case !inside || ended:
		case more || strings.Contains(line, ":"):
			part, unfinished := strings.CutSuffix(line, `\`) // a value goes on after a backslash
			header.WriteString(part)
			if more = unfinished; more {
				continue
			}
			if name, value, _ := strings.Cut(header.String(), ":"); strings.EqualFold(name, "Comment") {
				comment = strings.Trim(strings.TrimSpace(value), `"`)
			}
			header.Reset()
		default:
			body.WriteString(strings.TrimSpace(line))
		}
	}
	if !ended {
		return nil, "", errors.New("public key without its end line (RFC 4716)")
	}
	blob, err := base64.StdEncoding.DecodeString(body.String())
	if err == nil {
		key, err = ssh.ParsePublicKey(blob)
	}
	if err != nil {
		return nil, "", fmt.Errorf("public key (RFC 4716): %w", err)
	}
	return key, comment, nil
}

// FormatRFC4716 writes a public key as RFC 4716 section 3 has it. The comment is left
// out where it is empty or would not be one line of ASCII.
func FormatRFC4716(key ssh.PublicKey, comment string) []byte {
	const width = 72
	var b bytes.Buffer
	b.WriteString(beginPublic + "\n")
	plain := func(r rune) bool { return r >= ' ' && r < 0x7f && r != '"' && r != '\\' }
	if strings.IndexFunc(comment, func(r rune) bool { return !plain(r) }) < 0 && comment != "" && len(comment) < 50 {
		fmt.Fprintf(&b, "Comment: \"%s\"\n", comment)
	}
	text := base64.StdEncoding.EncodeToString(key.Marshal())
	for ; len(text) > width; text = text[width:] {
		b.WriteString(text[:width] + "\n")
	}
	b.WriteString(text + "\n" + endPublic + "\n")
	return b.Bytes()
}
