package osvm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"unicode/utf16"
)

// seedLabel is the name by which cloud-init knows a disk as its own (its NoCloud
// source).
const seedLabel = "cidata"

// Files of a seed disk. What a stock image runs of it is a part of user-data that
// every cloud-init knows, and that runs at each boot; by the mode local it does so
// before the network is set up, for which a system without one waits two minutes. All
// else is in a program beside it. Keys and locales are what takes longest where
// instructions are translated.
const (
	seedMetaData = "instance-id: mvm\nlocal-hostname: mvm\ndsmode: local\n"
	seedNetwork  = "version: 2\nethernets: {}\n"
	seedUserData = `#cloud-config
ssh_genkeytypes: [ed25519]
locale: C.UTF-8
bootcmd:
  - mkdir -p /run/mvm-seed && mount -o ro "$(findfs LABEL=cidata)" /run/mvm-seed && sh /run/mvm-seed/install
`
	seedInstall = `# Puts the agent of OS-level VMs into this system, and has it run as a service.
set -e
seed=$(dirname "$0")
mkdir -p /usr/local/sbin
cp "$seed/mvm-agent" /usr/local/sbin/mvm-agent.new
chmod 755 /usr/local/sbin/mvm-agent.new
mv /usr/local/sbin/mvm-agent.new /usr/local/sbin/mvm-agent
umount "$seed" 2>/dev/null || true
if [ -d /run/systemd/system ]; then
	cat >/etc/systemd/system/mvm-agent.service <<EOF
[Unit]
Description=MVM's agent in this OS-level VM
DefaultDependencies=no
Conflicts=shutdown.target
Before=shutdown.target

[Service]
ExecStart=/usr/local/sbin/mvm-agent serve
Restart=always
Delegate=yes
TasksMax=infinity
OOMScoreAdjust=-1000

[Install]
WantedBy=multi-user.target
EOF
	# A network is the host's to give, and later: what waits for one waits in vain.
	for unit in systemd-networkd-wait-online NetworkManager-wait-online; do
		mkdir -p /run/systemd/system/$unit.service.d
		printf '[Service]\nExecStart=\nExecStart=/bin/true\n' >/run/systemd/system/$unit.service.d/mvm.conf
	done
	systemctl daemon-reload
	systemctl enable mvm-agent.service
	systemctl start --no-block mvm-agent.service
else
	/usr/local/sbin/mvm-agent serve </dev/null >/dev/console 2>&1 &
fi
`
)

// Seed is a disk from which a stock cloud image takes the agent at its start and
// runs it as a service. The same agent gives the same bytes.
func Seed(agent []byte) ([]byte, error) {
	return vfat(seedLabel, []seedFile{
		{"meta-data", []byte(seedMetaData)}, {"user-data", []byte(seedUserData)}, {"network-config", []byte(seedNetwork)},
		{"install", []byte(seedInstall)}, {"mvm-agent", agent},
	})
}

type seedFile struct {
	name    string
	content []byte
}

// Sizes of a FAT16 file system with long names (Microsoft, FAT32 File System
// Specification, 1.03). The number of clusters alone tells FAT12, FAT16 and FAT32
// from each other.
const (
	fatSector       = 512
	fatCluster      = 4096 // bytes
	fatLeast        = 4085 + 15
	fatMost         = 65_524 - 16
	fatRootEntries  = 512
	fatEntry        = 32
	fatMedia        = 0xf8
	fatEnd          = 0xffff // of a chain of clusters
	fatLabelEntry   = 0x08   // attributes
	fatArchive      = 0x20
	fatLongName     = 0x0f
	fatNameLast     = 0x40
	fatNameRunes    = 13         // of an entry of a long name
	fatDay          = 0x21       // 1 January 1980, the first there is
	fatSerialNumber = 0x4d564d21 // any
)

// vfat makes a file system with files in its root folder.
func vfat(label string, list []seedFile) ([]byte, error) {
	clusters := fatLeast
	need := 0
	for _, f := range list {
		need += (len(f.content) + fatCluster - 1) / fatCluster
	}
	if clusters = max(clusters, need); clusters > fatMost {
		return nil, fmt.Errorf("files of %d clusters are too many for a seed disk: at most %d", need, fatMost)
	}
	const rootSectors = fatRootEntries * fatEntry / fatSector
	tableSectors := ((clusters+2)*2 + fatSector - 1) / fatSector
	sectors := 1 + 2*tableSectors + rootSectors + clusters*fatCluster/fatSector
	disk := make([]byte, sectors*fatSector)
	little := binary.LittleEndian

	boot := disk[:fatSector]
	copy(boot, "\xeb\x3c\x90MVM     ")
	little.PutUint16(boot[11:], fatSector)
	boot[13] = fatCluster / fatSector
	little.PutUint16(boot[14:], 1) // sectors before the tables
	boot[16] = 2                   // tables
	little.PutUint16(boot[17:], fatRootEntries)
	if sectors < 1<<16 {
		little.PutUint16(boot[19:], uint16(sectors))
	} else {
		little.PutUint32(boot[32:], uint32(sectors))
	}
	boot[21] = fatMedia
	little.PutUint16(boot[22:], uint16(tableSectors))
	little.PutUint16(boot[24:], 32) // of a track
	little.PutUint16(boot[26:], 64) // heads
	boot[36], boot[38] = 0x80, 0x29
	little.PutUint32(boot[39:], fatSerialNumber)
	copy(boot[43:54], fmt.Sprintf("%-11s", label))
	copy(boot[54:62], "FAT16   ")
	boot[510], boot[511] = 0x55, 0xaa

	table := make([]byte, tableSectors*fatSector)
	little.PutUint16(table, 0xff00|fatMedia)
	little.PutUint16(table[2:], fatEnd)
	data := disk[(1+2*tableSectors+rootSectors)*fatSector:]
	var root bytes.Buffer
	root.Write(shortEntry(fmt.Sprintf("%-11s", label), fatLabelEntry, 0, 0))
	next := 2
	for i, f := range list {
		first := 0
		if len(f.content) > 0 {
			first = next
		}
		for rest := f.content; len(rest) > 0; next++ {
			rest = rest[copy(data[(next-2)*fatCluster:(next-1)*fatCluster], rest):]
			following := next + 1
			if len(rest) == 0 {
				following = fatEnd
			}
			little.PutUint16(table[2*next:], uint16(following))
		}
		short := fmt.Sprintf("FILE%04d   ", i)
		root.Write(longEntries(f.name, short))
		root.Write(shortEntry(short, fatArchive, first, len(f.content)))
	}
	if root.Len() > fatRootEntries*fatEntry {
		return nil, fmt.Errorf("%d files are too many for a seed disk", len(list))
	}
	copy(disk[fatSector:], table)
	copy(disk[(1+tableSectors)*fatSector:], table)
	copy(disk[(1+2*tableSectors)*fatSector:], root.Bytes())
	return disk, nil
}

func shortEntry(name string, attributes byte, cluster, size int) []byte {
	entry := make([]byte, fatEntry)
	copy(entry, name)
	entry[11] = attributes
	for _, at := range []int{16, 18, 24} { // created, read, written
		binary.LittleEndian.PutUint16(entry[at:], fatDay)
	}
	binary.LittleEndian.PutUint16(entry[26:], uint16(cluster))
	binary.LittleEndian.PutUint32(entry[28:], uint32(size))
	return entry
}

// longEntries spell a name before the entry that short is of, its last part first.
func longEntries(name, short string) []byte {
	sum := byte(0)
	for i := range len(short) {
		sum = sum<<7 | sum>>1
		sum += short[i]
	}
	units := utf16.Encode([]rune(name))
	if len(units)%fatNameRunes != 0 {
		units = append(units, 0)
		for len(units)%fatNameRunes != 0 {
			units = append(units, 0xffff)
		}
	}
	var out []byte
	for part := len(units) / fatNameRunes; part > 0; part-- {
		entry := make([]byte, fatEntry)
		entry[0] = byte(part)
		if part == len(units)/fatNameRunes {
			entry[0] |= fatNameLast
		}
		entry[11], entry[13] = fatLongName, sum
		for i, unit := range units[(part-1)*fatNameRunes : part*fatNameRunes] {
			at := 1 + 2*i
			switch {
			case i >= 11:
				at = 28 + 2*(i-11)
			case i >= 5:
				at = 14 + 2*(i-5)
			}
			binary.LittleEndian.PutUint16(entry[at:], unit)
		}
		out = append(out, entry...)
	}
	return out
}
