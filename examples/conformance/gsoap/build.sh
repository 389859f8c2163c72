#!/bin/sh
# Makes the gSOAP client of a running grid from the WSDLs that it publishes.
#
#     build.sh GRID FOLDER
#
# GRID is a node's address, http://127.0.0.1:7480. The program is FOLDER/grid.
# Needs Debian's gsoap, libgsoap-dev and libssl-dev.
set -eu
grid=$1 folder=$2
here=$(dirname "$0")
services=$grid/services

# -c: C. The type map names the prefix of urn:mvm:1.
wsdl2h -c -t "$here/typemap.dat" -o "$folder/grid.h" \
	"$services/bootstrap?wsdl" "$services/broker?wsdl" "$services/image?wsdl" "$services/queue?wsdl" "$services/information?wsdl" "$services/vm?wsdl"
# -C: a client. -s: strict, what does not fit the schema is an error.
soapcpp2 -c -C -s -w -x -L -d "$folder" "$folder/grid.h"
${CC:-gcc} -std=gnu11 -Wall -Wextra -I "$folder" -o "$folder/grid" "$here/grid.c" "$folder/soapC.c" "$folder/soapClient.c" -lgsoap -lcrypto
