#!/bin/sh
# A grid in the hands of curl and the shell, and nothing else: submit a job,
# wait for it, print what it wrote.
#
#     curl.sh GRID [FACTOR]
#
# GRID is a node's address (http://127.0.0.1:7480) or that of its bootstrap
# service; FACTOR is a number, by default 7, that the job multiplies. What the
# job wrote is on stdout, its id and what went wrong on stderr; the exit status
# is 0 when the job succeeded. Any POSIX shell will do.
set -eu

grid=${1:?usage: curl.sh GRID [FACTOR]}
factor=${2:-7}
grid=${grid%/}
grid=${grid%/bootstrap}
grid=${grid%/services}

# call SERVICE_URL ELEMENT: POST an element in an envelope; $answer is what
# came back. A fault ends the script with its sentence.
call() {
	answer=$(curl -sS --noproxy '*' --max-time 90 -H 'Content-Type: text/xml; charset=utf-8' --data-binary @- "$1" <<END
<soap:Envelope xmlns:soap="http://schemas.xmlsoap.org/soap/envelope/"><soap:Body>$2</soap:Body></soap:Envelope>
END
	)
	case $answer in
	*'<faultstring>'*)
		inside "$answer" faultstring
		echo "curl.sh: $value" >&2
		exit 1 ;;
	*'</soap:Envelope>'*) ;;
	*)
		echo "curl.sh: $1 answered: $answer" >&2
		exit 1 ;;
	esac
}

# inside XML NAME: $value is what the first element NAME holds.
inside() {
	case $1 in
	*"<$2>"*)
		value=${1#*"<$2>"}
		value=${value%%"</$2>"*} ;;
	*) value= ;;
	esac
}

# Where is the broker?
call "$grid/services/bootstrap" '<GetBroker xmlns="urn:mvm:1"/>'
inside "$answer" url;   broker=$value
inside "$answer" image; image=$value

# Submit. The token lets a repeated call submit once.
read -r token </proc/sys/kernel/random/uuid || token=$$-$(date +%s)
call "$broker" "<SubmitJob xmlns='urn:mvm:1'>
  <token>$token</token>
  <job name='curl'>
    <description>One shell process that multiplies.</description>
    <parameter name='factor' default='3'/>
    <source name='multiply' language='shell'>
      <file name='multiply.sh'><text><![CDATA[#!/bin/sh
# multiplies its argument by six
echo \"curl asked for \$((6 * \$1))\"
]]></text></file>
    </source>
    <task name='multiply' source='multiply'><argument>\${factor}</argument></task>
    <policy wallTime='60'/>
  </job>
  <argument name='factor' value='$factor'/>
</SubmitJob>"
inside "$answer" id; job=$value
echo "job $job" >&2

# Wait, a minute at a time.
state=
while :; do
	call "$broker" "<WaitJob xmlns='urn:mvm:1'><id>$job</id><timeoutMillis>60000</timeoutMillis></WaitJob>"
	inside "$answer" state; state=$value
	case $state in
	succeeded) break ;;
	failed | cancelled)
		inside "$answer" reason
		echo "curl.sh: job $job $state: $value" >&2
		exit 1 ;;
	esac
done

# Print: outputs are blobs, and blobs are plain HTTP.
process=${answer#*'<process>'}
stdout=${process#*'<name>stdout</name>'}
inside "$stdout" digest
curl -sS --fail --noproxy '*' --max-time 60 "$image/blobs/$value"
